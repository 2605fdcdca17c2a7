"""What a study's file holds, and how studies, rows and bases are found by name.

A study is a module beside this one with TITLE, TABLE (its number in the paper, or ''),
QUESTION, NOTES (differences to the paper, or ''), BASELINE (name of the row that the
others are compared with), ROWS, and `get_config('ROW')` or `get_config('ROW@BASE')`,
where BASE is any config in configs/.

A study or base of your own may lie anywhere: give the path of its file (ending in .py)
instead of a name. The file of a base has `get_config()`; the file of a study has all
names above, as beta.py has them.
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
_STUDY_NAMES = 'TITLE', 'TABLE', 'QUESTION', 'NOTES', 'BASELINE', 'ROWS', 'get_config'
_HELPERS = ('__init__', 'changes', 'table')
_FOLDER = pathlib.Path(__file__).parent


class Row(NamedTuple):
  """One row of a table.

  Attributes:
    title: in reports.
    paper: the paper's AP, AP50, AP75 and perhaps APs, APm, APl, in percent; None if
      the paper does not have the row.
    change: changes a base's config in place.
    note: where the row differs from the paper's, or where it comes from.
    baseline: name of the row that this one is compared with; None: the study's. A row
      that names itself is compared with none.
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
  """Names of the configs in configs/, from which a study can start."""
  return _modules(_FOLDER.parent)


def load_study(name: str) -> Any:
  """The module of a study.

  Args:
    name: of a study here, or the path of a study's file.

  Raises:
    ValueError: an unknown study (the error lists the known ones), or a file that lacks
      a name.
  """
  if name.endswith('.py'):
    return _load_file(resolved(name), 'study', _STUDY_NAMES)
  return importlib.import_module(
    f'configs.ablations.{_known("study", name, studies())}'
  )


def base_config(name: str) -> ml_collections.ConfigDict:
  """The config of a base.

  Args:
    name: of a config in configs/, or the path of a config's file.

  Raises:
    ValueError: an unknown base (the error lists the known ones), or a file that lacks
      `get_config`.
  """
  if name.endswith('.py'):
    return _load_file(resolved(name), 'base', ('get_config',)).get_config()
  return importlib.import_module(
    f'configs.{_known("base", name, bases())}'
  ).get_config()


def row_config(rows: Mapping[str, Row], text: str) -> ml_collections.ConfigDict:
  """The config of 'ROW' or 'ROW@BASE'.

  Raises:
    ValueError: no row, or an unknown row or base; the error lists the known ones.
  """
  name, at, base = text.partition('@')
  if not name:
    raise UserError(
      f'give a row, such as beta.py:2@demo_shapes; there are: {", ".join(rows)}'
    )
  row = rows[_known('row', name, list(rows))]
  config = base_config(base if at else DEFAULT_BASE)
  row.change(config)
  return config


def resolved(name: str) -> str:
  """A name as it is; a path made absolute."""
  return str(pathlib.Path(name).resolve()) if name.endswith('.py') else name


def file_of(study: str) -> str:
  """The file of a study, as it stands in --config=FILE:ROW@BASE of a single run."""
  return resolved(study) if study.endswith('.py') else f'configs/ablations/{study}.py'


def stem(name: str) -> str:
  """The name of a study or base; of a path, the file's name without .py."""
  return pathlib.Path(name).stem if name.endswith('.py') else name


@functools.cache  # so that an edit during a study does not mix two versions
def _load_file(path: str, what: str, needed: tuple[str, ...]) -> Any:
  """The module of a user's own file. Errors of its code are raised unchanged."""
  file = pathlib.Path(path)
  if not file.is_file():
    raise MissingFileError(f'--{what}={path} does not exist')
  # Not by its own name, which may be the name of another module.
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
