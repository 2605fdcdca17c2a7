"""Tables of rows: what a study's module is made of, and how its rows are named.

A study is a module beside this one: TITLE, TABLE (its number in the paper, or ''),
QUESTION, NOTES (what is not as in the paper, or ''), BASELINE (the name of the row that
others are compared with), ROWS and `get_config('ROW')` or `get_config('ROW@BASE')`,
where BASE is any config in configs/. One of your own may lie anywhere: wherever a study
or a base is named, the path of its file (ending in .py) may stand instead. Such a base
has `get_config()`; such a study has all that is listed here, as beta.py has it.
"""

import functools
import importlib
import importlib.util
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import ml_collections

from gfl_jax.errors import MissingFileError, UserError

DEFAULT_BASE = 'gfl_r50_fpn_1x_coco'
_OF_STUDIES = (
  *('TITLE', 'TABLE', 'QUESTION', 'NOTES', 'BASELINE', 'ROWS'),
  'get_config',
)
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

  Args:
    name: of a study here, or the path of a file that is one.

  Raises:
    ValueError: an unknown study, the error names those there are; or a file that is
      none.
  """
  if name.endswith('.py'):
    return _load_file(resolved(name), 'study', _OF_STUDIES)
  return importlib.import_module(
    f'configs.ablations.{_known("study", name, studies())}'
  )


def base_config(name: str) -> ml_collections.ConfigDict:
  """The config of a base.

  Args:
    name: of a config in configs/, or the path of a config's file.

  Raises:
    ValueError: an unknown base, the error names those there are; or a file that is
      none.
  """
  if name.endswith('.py'):
    return _load_file(resolved(name), 'base', ('get_config',)).get_config()
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


def resolved(name: str) -> str:
  """A name as it is, a path as an absolute one."""
  return str(pathlib.Path(name).resolve()) if name.endswith('.py') else name


def file_of(study: str) -> str:
  """The file of a study, as --config of one of its runs has it."""
  return resolved(study) if study.endswith('.py') else f'configs/ablations/{study}.py'


def stem(name: str) -> str:
  """What a study or base is called: the name itself, or that of the file."""
  return pathlib.Path(name).stem if name.endswith('.py') else name


@functools.cache  # of one process, all runs are of what the file was at first
def _load_file(path: str, what: str, needed: tuple[str, ...]) -> Any:
  """The module of a user's own file; its own errors are raised as they are."""
  file = pathlib.Path(path)
  if not file.is_file():
    raise MissingFileError(f'--{what}={path} does not exist')
  # Not by its own name, which a module that is imported may have.
  spec = importlib.util.spec_from_file_location(f'_{what}_{file.stem}', file)
  assert spec is not None and spec.loader is not None
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  if missing := [name for name in needed if not hasattr(module, name)]:
    raise UserError(
      f'--{what}={path} lacks {", ".join(missing)}: write it as'
      f' {"configs/ablations/beta.py" if what == "study" else "configs/bccd.py"}'
    )
  return module


def _modules(folder: pathlib.Path) -> list[str]:
  return sorted(f.stem for f in folder.glob('*.py') if f.stem not in _HELPERS)


def _known(what: str, name: str, names: list[str]) -> str:
  if name not in names:
    raise UserError(f'there is no {what} {name!r}; there are: {", ".join(names)}')
  return name
