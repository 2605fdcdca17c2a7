"""The command line of a study: seeds, rows, which of the runs, changes of the base."""

import ast
import difflib
import fnmatch
import re
from collections.abc import Iterable, Sequence
from typing import Any

from flax import traverse_util
from ml_collections import ConfigDict

from gfl_jax.errors import UserError


def parse_seeds(text: str) -> tuple[int, ...]:
  """'3' gives the seeds 0, 1, 2; '0,4,7' and '4,' are lists.

  Raises:
    ValueError: no seed, a seed twice, or not a whole number from 0 up.
  """
  parts = text.removesuffix(',').split(',')
  if not all(part.strip().isdecimal() for part in parts):
    raise UserError(f'--seeds={text}: give how many (3 is 0,1,2), or a list like 0,4,7')
  numbers = [int(part) for part in parts]
  seeds = numbers if ',' in text else list(range(numbers[0]))
  if not seeds or len(set(seeds)) < len(seeds):
    raise UserError(f'--seeds={text}: give at least one seed, and each only once')
  return tuple(seeds)


def format_seeds(seeds: Sequence[int]) -> str:
  """The text that `parse_seeds` reads as these seeds."""
  return ','.join(map(str, seeds)) + (',' if len(seeds) == 1 else '')


def parse_jobs(text: str) -> tuple[int, int]:
  """'1/4' gives (1, 4): every fourth run, starting with run 1.

  Raises:
    ValueError: another form, or an index that is not below the count.
  """
  found = re.fullmatch(r'(\d+)/(\d+)', text)
  if not found or int(found[1]) >= int(found[2]):
    raise UserError(
      f'--jobs={text}: give INDEX/COUNT, such as 0/2 in one process and 1/2 in another'
    )
  return int(found[1]), int(found[2])


def select_rows(names: Iterable[str], patterns: str) -> list[str]:
  """The rows that match any of the comma-separated patterns, in the table's order.

  Raises:
    ValueError: a pattern that matches no row; the error lists the rows.
  """
  names, wanted = list(names), [part.strip() for part in patterns.split(',')]
  for pattern in wanted:
    if not fnmatch.filter(names, pattern):
      raise UserError(
        f'--rows={patterns}: no row matches {pattern!r}; the rows: {", ".join(names)}'
      )
  return [n for n in names if any(fnmatch.fnmatchcase(n, p) for p in wanted)]


def flatten(config: ConfigDict) -> dict[str, Any]:
  """Every value of a config by its full name, such as 'data.canvas'."""
  return traverse_util.flatten_dict(config.to_dict(), sep='.')


def override(config: ConfigDict, texts: Sequence[str]) -> None:
  """Sets values given as 'epochs=4' or 'data.canvas=(64, 64)'.

  Each keeps the type that it has in the config.

  Raises:
    ValueError: no such field (suggests one), a field given twice, or a value of
      another type.
  """
  values = flatten(config)
  names = [text.partition('=')[0] for text in texts]
  for text in texts:
    name, equals, value = text.partition('=')
    if names.count(name) > 1:
      raise UserError(f'--set={text}: {name} is given more than once')
    if not equals:
      raise UserError(f'--set={text}: give FIELD=VALUE, such as --set=epochs=4')
    if name == 'seed':
      raise UserError(f'--set={text}: the seeds of a study are given by --seeds')
    if name not in values:
      inside = [field for field in values if field.startswith(f'{name}.')]
      close = inside or difflib.get_close_matches(name, values) or values
      raise UserError(
        f'--set={text}: the config has no field {name!r}; did you mean one of'
        f' {", ".join(close)}?'
      )
    config.update_from_flattened_dict({name: _typed(value, values[name], text)})


def _typed(value: str, current: Any, text: str) -> Any:
  try:
    if isinstance(current, bool):
      return {'true': True, 'false': False}[value.lower()]
    if isinstance(current, tuple):
      convert = type(current[0]) if current else lambda item: item
      return tuple(convert(item) for item in ast.literal_eval(value))
    return type(current)(value)
  except (KeyError, ValueError, TypeError, SyntaxError) as error:
    raise UserError(
      f'--set={text}: this field needs {type(current).__name__}, such as {current!r}'
    ) from error
