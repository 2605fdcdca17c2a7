"""Configs: choices by name, and configs that JSON kept."""

from collections.abc import Mapping
from typing import Any, TypeVar

import ml_collections

from gfl_jax.errors import UserError

Kind = TypeVar('Kind', str, int)
T = TypeVar('T')


def choose(choices: Mapping[Kind, T], kind: Kind, field: str) -> T:
  """`choices[kind]`.

  Args:
    choices: what each kind stands for.
    kind: the config's value.
    field: its name in the config, for the error.

  Raises:
    ValueError: an unknown kind; names the field and the kinds there are.
  """
  if kind not in choices:
    raise UserError(f'{field}={kind!r} is not one of {sorted(choices)}')
  return choices[kind]


def completed(values: Mapping[str, Any]) -> dict[str, Any]:
  """A stored config with the fields added since, set to the behavior of its time.

  Args:
    values: an experiment's config as JSON kept it.

  Raises:
    ValueError: of `box` or `score`, which older files have in `model`, too, the two
      differ: no config describes what was trained then.
  """
  model = dict(values['model'])
  model.setdefault('remat', [])
  for name in ('box', 'score'):
    copy = model.pop(name, None)
    if copy is not None and copy != values[name]:
      raise UserError(
        f'the stored config has {name}={values[name]} and model.{name}={copy}: the'
        ' network has the outputs of the second, but was trained as if it had those of'
        ' the first. Train it again'
      )
  data, schedule = dict(values['data']), dict(values['schedule'])
  data.setdefault('keep_empty', False)
  schedule.setdefault('extensions', [])
  return {**values, 'model': model, 'data': data, 'schedule': schedule}


def stored_config(values: Mapping[str, Any]) -> Any:
  """The config of an experiment from what JSON kept of it, a locked ConfigDict."""
  return ml_collections.ConfigDict(completed(values)).lock()


def differences(stored: Any, given: Any, name: str = '') -> list[str]:
  """What differs between two nested dicts: 'field: stored 1, given 2' each.

  Args:
    stored: a config, or a section of one, as JSON has it.
    given: another.
    name: of the section.
  """
  if isinstance(stored, dict) and isinstance(given, dict):
    parts = []
    for key in sorted(stored.keys() | given.keys()):
      below = f'{name}.{key}' if name else key
      missing = '(no such field)'
      parts += differences(stored.get(key, missing), given.get(key, missing), below)
    return parts
  return [] if stored == given else [f'{name}: stored {stored!r}, given {given!r}']


def checked_classes(
  names: Any, category_ids: Any
) -> tuple[tuple[str, ...], tuple[int, ...]]:
  """Names and category ids of classes, as a JSON file has them, once they are that.

  Raises:
    TypeError: no lists of strings and of whole numbers, or not of one length.
  """
  lists = {'names': (names, str), 'category_ids': (category_ids, int)}
  for what, (values, kind) in lists.items():
    if not isinstance(values, list) or not all(isinstance(x, kind) for x in values):
      raise TypeError(f'its {what} must be a list of {kind.__name__}')
  if len(names) != len(category_ids):
    raise TypeError(f'it has {len(names)} names and {len(category_ids)} category_ids')
  return tuple(names), tuple(category_ids)
