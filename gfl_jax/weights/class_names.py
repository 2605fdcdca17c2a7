"""What the classes of a trained detector are called, and their category ids."""

import logging
import pathlib
from typing import Any

from gfl_jax import files
from gfl_jax.data.coco_json import COCO_CATEGORY_IDS, COCO_NAMES
from gfl_jax.errors import MissingFileError, UserError

_LOG = logging.getLogger(__name__)
_Classes = tuple[tuple[str, ...], tuple[int, ...]]


def choose_classes(given: str, stored: tuple[str, ...], source: Any) -> _Classes:
  """Names and category ids of a checkpoint's classes.

  COCO's own classes have COCO's ids. Other classes have the ids of the json, or 1, 2,
  ... without a json.

  Args:
    given: as 'cat,dog', or a .json in COCO form; empty for `stored`.
    stored: the names in the checkpoint, in its order; empty if it has none.
    source: the checkpoint, for errors.

  Raises:
    FileNotFoundError: the json does not exist.
    ValueError: no names; a name or an id that is there twice or empty; the names of the
      checkpoint in another order; a json with other names than the checkpoint.
  """
  stored, from_json = _without_underscores(stored), given.endswith('.json')
  if from_json:
    names, ids = _read_categories(pathlib.Path(given))
  else:
    names = tuple(name.strip() for name in given.split(',')) if given else stored
    names, ids = _without_underscores(names), tuple(range(1, len(names) + 1))
    ids = COCO_CATEGORY_IDS if names == COCO_NAMES else ids
  if not names:
    raise UserError(
      f'the names of the classes are not in {source}, or the classes are new: give'
      ' --class_names=cat,dog (one name for each) or --class_names=FILE.json in COCO'
      ' form'
    )
  for what, values in (('names of classes', names), ('category ids', ids)):
    wrong = {value for value in values if values.count(value) > 1 or value == ''}
    if wrong:
      raise UserError(f'{what} that occur twice or are empty: {sorted(wrong)}')
  if not stored or names == stored:
    return names, ids
  if from_json:
    by_name = dict(zip(names, ids, strict=True))
    if set(stored) != set(names):
      raise UserError(
        f'the classes of {given} are not those of {source}: only the json has'
        f' {sorted(set(names) - set(stored))}, only the checkpoint has'
        f' {sorted(set(stored) - set(names))}; to train it for others, add --new_head'
      )
    return stored, tuple(by_name[name] for name in stored)
  if set(names) == set(stored):
    raise UserError(
      f'--class_names={given} has the classes of {source} in another order than the'
      f' checkpoint ({",".join(stored)}): leave --class_names out'
    )
  _LOG.warning('The classes %s are now called %s.', ', '.join(stored), ', '.join(names))
  return names, ids


def _without_underscores(names: tuple[str, ...]) -> tuple[str, ...]:
  """COCO's own names in place of mmdet 1.x's form of them, such as 'traffic_light'."""
  same = tuple(name.replace('_', ' ') for name in names) == COCO_NAMES
  return COCO_NAMES if same else names


def _read_categories(path: pathlib.Path) -> _Classes:
  """Names and ids of a json in COCO form, in its order."""
  if not path.is_file():
    raise MissingFileError(f'--class_names={path} does not exist')
  try:
    categories = files.read_json(path)['categories']
    return (
      tuple(str(category['name']).strip() for category in categories),
      tuple(int(category['id']) for category in categories),
    )
  except (ValueError, KeyError, TypeError) as error:
    raise UserError(
      f'--class_names={path} is not in COCO form: it needs a list "categories" of'
      ' {"id": 1, "name": "cat"}'
    ) from error
