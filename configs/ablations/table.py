"""Tables of rows: what a study's module is made of, and how its rows are named.

A study is a module beside this one: TITLE, TABLE (its number in the paper, or ''),
QUESTION, NOTES (what is not as in the paper, or ''), BASELINE (the name of the row that
others are compared with), ROWS and `get_config('ROW')` or `get_config('ROW@BASE')`,
where BASE is any config in configs/.
"""

import importlib
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import ml_collections

from gfl_jax.errors import UserError

DEFAULT_BASE = 'gfl_r50_fpn_1x_coco'
_HELPERS = ('__init__', 'changes', 'table')
_FOLDER = pathlib.Path(__file__).parent


class Row(NamedTuple):
  """One row of a table.

  Attributes:
    title: for people.
    paper: the paper's AP, AP50, AP75 and perhaps APs, APm, APl, in percent; None for
      a row that the paper does not have.
    change: alters a base's config in place.
    note: what differs from the paper's row, or where it comes from.
    baseline: name of the row that this one is compared with; None: the study's. Its
      own name: with none.
  """

  title: str
  paper: tuple[float, ...] | None
  change: Callable[[ml_collections.ConfigDict], None]
  note: str = ''
  baseline: str | None = None


def studies() -> list[str]:
  """Names of all studies."""
  return _modules(_FOLDER)


def bases() -> list[str]:
  """Names of the configs that a study can start from."""
  return _modules(_FOLDER.parent)


def load_study(name: str) -> Any:
  """The module of a study.

  Raises:
    ValueError: an unknown study; names those there are.
  """
  return importlib.import_module(
    f'configs.ablations.{_known("study", name, studies())}'
  )


def base_config(name: str) -> ml_collections.ConfigDict:
  """The config of a base.

  Raises:
    ValueError: an unknown base; names those there are.
  """
  return importlib.import_module(
    f'configs.{_known("base", name, bases())}'
  ).get_config()


def row_config(rows: Mapping[str, Row], text: str) -> ml_collections.ConfigDict:
  """The config of 'ROW' or 'ROW@BASE'.

  Raises:
    ValueError: no row, an unknown row or base; names those there are.
  """
  name, at, base = text.partition('@')
  if not name:
    raise UserError(
      f'give a row, as beta.py:2@demo_shapes; there are: {", ".join(rows)}'
    )
  row = rows[_known('row', name, list(rows))]
  config = base_config(base if at else DEFAULT_BASE)
  row.change(config)
  return config


def _modules(folder: pathlib.Path) -> list[str]:
  return sorted(f.stem for f in folder.glob('*.py') if f.stem not in _HELPERS)


def _known(what: str, name: str, names: list[str]) -> str:
  if name not in names:
    raise UserError(f'there is no {what} {name!r}; there are: {", ".join(names)}')
  return name
