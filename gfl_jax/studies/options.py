"""What a study is asked for on the command line: seeds, rows, a share, other values."""

import ast
import difflib
import fnmatch
from collections.abc import Iterable, Sequence
from typing import Any

from ml_collections import ConfigDict

from gfl_jax.errors import UserError


def parse_seeds(text: str) -> tuple[int, ...]:
  """'3' is the seeds 0, 1, 2; '0,4,7' and '4,' are lists.

  Raises:
    ValueError: no seed, a seed twice, or what is no whole number from 0 up.
  """
  parts = [part.strip() for part in text.split(',')]
  is_list = len(parts) > 1
  if is_list and not parts[-1]:
    parts.pop()
  if not all(part.isdecimal() for part in parts):
    raise UserError(f'--seeds={text}: give how many (3 is 0,1,2), or a list like 0,4,7')
  numbers = [int(part) for part in parts]
  seeds = numbers if is_list else list(range(numbers[0]))
  if not seeds:
    raise UserError(f'--seeds={text}: at least one seed is needed')
  doubles = sorted({seed for seed in seeds if seeds.count(seed) > 1})
  if doubles:
    raise UserError(
      f'--seeds={text}: {doubles} given twice, which would count as more runs than'
      ' there are'
    )
  return tuple(seeds)


def format_seeds(seeds: Sequence[int]) -> str:
  """What `parse_seeds` reads as these seeds."""
  if list(seeds) == list(range(len(seeds))):
    return str(len(seeds))
  return ','.join(map(str, seeds)) + (',' if len(seeds) == 1 else '')


def parse_jobs(text: str) -> tuple[int, int]:
  """'1/4' is (1, 4): of the runs, the second of every four.

  Raises:
    ValueError: another form, or an index that is not below the count.
  """
  index, slash, count = text.partition('/')
  if not (
    slash and index.isdecimal() and count.isdecimal() and int(index) < int(count)
  ):
    raise UserError(
      f'--jobs={text}: INDEX/COUNT, as 0/2 in one process and 1/2 in another'
    )
  return int(index), int(count)


def select_rows(names: Iterable[str], patterns: str) -> list[str]:
  """The rows that a comma-separated list of patterns names, in the table's order.

  Raises:
    ValueError: a pattern that no row fits; names the rows.
  """
  names, wanted = list(names), [part.strip() for part in patterns.split(',')]
  for pattern in wanted:
    if not fnmatch.filter(names, pattern):
      raise UserError(
        f'--rows={patterns}: no row is {pattern!r}; the rows: {", ".join(names)}'
      )
  return [n for n in names if any(fnmatch.fnmatchcase(n, p) for p in wanted)]


def override(config: ConfigDict, texts: Sequence[str]) -> None:
  """Sets fields as in 'epochs=4' or 'data.canvas=(64, 64)', typed by what they hold.

  Raises:
    ValueError: no such field (suggests one), a field given twice, or a value of
      another type.
  """
  names = [text.partition('=')[0] for text in texts]
  for text in texts:
    name, equals, value = text.partition('=')
    if names.count(name) > 1:
      raise UserError(f'--set={text}: {name} is given more than once')
    if not equals:
      raise UserError(f'--set={text}: FIELD=VALUE is needed, as --set=epochs=4')
    if name == 'seed':
      raise UserError(f'--set={text}: the seeds of a study are given by --seeds')
    node: Any = config
    *sections, field = name.split('.')
    for section in sections:
      node = _child(node, section, text)
    node[field] = _typed(value, _child(node, field, text), text)


def _child(node: Any, field: str, text: str) -> Any:
  if not isinstance(node, ConfigDict) or field not in node:
    names = list(node) if isinstance(node, ConfigDict) else []
    close = difflib.get_close_matches(field, names, n=1)
    hint = f'did you mean {close[0]!r}?' if close else f'there are: {sorted(names)}'
    raise UserError(f'--set={text}: the config has no field {field!r}: {hint}')
  return node[field]


def _typed(value: str, now: Any, text: str) -> Any:
  kind = type(now)
  try:
    if kind is bool:
      return {'true': True, 'false': False}[value.lower()]
    if kind in (int, float, str):
      return kind(value)
    if kind is tuple:
      items = ast.literal_eval(value)
      return tuple(type(now[0])(item) for item in items) if now else tuple(items)
  except (KeyError, ValueError, TypeError, SyntaxError) as error:
    raise UserError(
      f'--set={text}: {"an" if kind is int else "a"} {kind.__name__} is needed, as'
      f' {now!r} is'
    ) from error
  raise UserError(f'--set={text}: that is a section; its fields: {sorted(now)}')
