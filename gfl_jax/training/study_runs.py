"""The runs of studies in one results folder: found, locked, recorded, never mixed.

`ROOT/runs/` holds the run folders that all studies below ROOT share: a run is found by
its config and seed, whichever study made it. Beside what every run has, each folder
has `study_run.json`: the code that made it, how it ended, and what it cost.
"""

import ast
import contextlib
import dataclasses
import fcntl
import functools
import hashlib
import json
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from gfl_jax.files import write_whole
from gfl_jax.training import run_folder

_PACKAGE = Path(__file__).parents[1]
RECORD = 'study_run.json'


@functools.cache
def code_version() -> str:
  """Digest of the sources that can change a run's numbers, 12 hexadecimal digits.

  They are those that an experiment is built from: what its module imports, directly
  or not. Reports and scripts are not among them.
  """
  lines = (
    f'{file.relative_to(_PACKAGE).as_posix()} {_sha256(file.read_bytes())}\n'
    for file in sorted(_imported(_PACKAGE / 'training' / 'experiment.py'))
  )
  return _sha256(''.join(lines).encode())[:12]


def _imported(start: Path) -> set[Path]:
  """A file of the package, and all of the package that it needs."""
  found, queue = set(), [start]
  while queue:
    file = queue.pop()
    if file in found:
      continue
    found.add(file)
    for node in ast.walk(ast.parse(file.read_text())):
      if isinstance(node, ast.ImportFrom) and node.module:
        names = [node.module, *(f'{node.module}.{alias.name}' for alias in node.names)]
        paths = (_PACKAGE.parent.joinpath(*name.split('.')) for name in names)
        both = ((path.with_suffix('.py'), path / '__init__.py') for path in paths)
        queue += [path for pair in both for path in pair if path.exists()]
  return {file for file in found if file.is_relative_to(_PACKAGE)}


def check_code(root: Path) -> None:
  """Raises a ValueError if a run below `root` was made by another code version."""
  for file in sorted(root.glob(f'runs/*/{RECORD}')):
    found = json.loads(file.read_text())['code']
    if found != code_version():
      raise ValueError(
        f'{file.parent} was made by code {found}, this is code {code_version()}:'
        ' their numbers are not mixed. Give another --root, or check out the code'
        f' that made it ({_revision(file.parent)})'
      )


@dataclasses.dataclass(frozen=True)
class Run:
  """One row with one seed.

  Attributes:
    root: the results folder.
    label: study and row, as the folder's name begins if this study makes it.
    config: with the seed in it.
  """

  root: Path
  label: str
  config: ConfigDict

  @functools.cached_property
  def key(self) -> str:
    """Names the config: 'seed3-0123abcd'. Equal for all that train the same."""
    values = json.loads(self.config.to_json())
    for name in run_folder.bookkeeping(values):
      del values[name]
    digest = _sha256(json.dumps(values, sort_keys=True).encode())
    return f'seed{self.config.seed}-{digest[:8]}'

  @property
  def folder(self) -> Path:
    """The folder that some study made for this config, or the one to be made."""
    found = sorted(self.root.glob(f'runs/*-{self.key}'))
    return found[0] if found else self.root / 'runs' / f'{self.label}-{self.key}'

  @property
  def record(self) -> dict[str, Any]:
    """`study_run.json`; empty before the run."""
    return _read(self.folder / RECORD)

  @property
  def metrics(self) -> dict[str, Any] | None:
    """Those of the last step; None if it is not done or was not evaluated last."""
    metrics, record = _read(self.folder / 'eval' / 'metrics.json'), self.record
    done = record and record['status'] == 'finished'
    return metrics if done and metrics.get('step') == record['step'] else None

  @contextlib.contextmanager
  def recording(self) -> Iterator[dict[str, Any]]:
    """Makes the folder; keeps how the run ends. The caller adds what it cost."""
    before = self.record
    self.folder.mkdir(parents=True, exist_ok=True)
    record = {
      'code': code_version(),
      'status': 'running',
      'error': None,
      'step': None,
      'seconds': before.get('seconds', 0.0),
      'compilations': before.get('compilations', 0),
    }
    write = lambda: write_whole(self.folder / RECORD, json.dumps(record, indent=2))
    write()
    try:
      yield record
      record['status'] = 'finished'
    except Exception as error:
      record.update(status='failed', error=f'{type(error).__name__}: {error}')
      write_whole(self.folder / 'error.txt', traceback.format_exc())
      raise
    except BaseException:
      record['status'] = 'interrupted'
      raise
    finally:
      write()


@contextlib.contextmanager
def lock(path: Path, *, wait: bool) -> Iterator[bool]:
  """Holds `path` against other processes of all hosts that share the folder.

  The system frees it when its process ends, however it ends. The file stays.

  Args:
    path: of the lock's file.
    wait: until it is free; otherwise the value is False if another one holds it.
  """
  path.parent.mkdir(parents=True, exist_ok=True)
  with path.open('w') as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
      held = True
    except BlockingIOError:
      held = False
    yield held


def _read(file: Path) -> dict[str, Any]:
  return json.loads(file.read_text()) if file.exists() else {}


def _revision(folder: Path) -> str:
  return f'git {_read(folder / "env.json").get("git", "unknown")}'


def _sha256(content: bytes) -> str:
  return hashlib.sha256(content).hexdigest()
