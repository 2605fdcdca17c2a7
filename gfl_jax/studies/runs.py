"""The runs of studies in one results folder: found, locked, recorded, never mixed.

`ROOT/runs/` holds the run folders that all studies below ROOT share: a run is found by
its config and seed, whichever study made it. Beside what every run has, each folder
has `study_run.json`: the code that made it, how it ended, what it cost, and what it was
trained with.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import shutil
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from gfl_jax.errors import UserError
from gfl_jax.files import atomic_write, read_json, read_json_lines, write_json_lines
from gfl_jax.studies import source_digests
from gfl_jax.training import run_folder

RECORD = 'study_run.json'


def check_code(root: Path) -> None:
  """Raises a ValueError if a run below `root` was made by another code than today's."""
  for file in sorted(root.glob(f'runs/*/{RECORD}')):
    if differing := source_digests.difference(json.loads(file.read_text())['code']):
      raise UserError(
        f'{file.parent} was made by other code than this, and their numbers are not'
        f' mixed: {differing}. Give another --root, or check out the code that made it'
        f' ({_revision(file.parent)})'
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
    """Names the config: 'seed3-0123abcd'. Equal for all whose numbers are the same."""
    return self._key()

  @functools.cached_property
  def training_key(self) -> str:
    """As `key`, equal for all that train the same, however they decode."""
    return self._key('decode')

  def _key(self, *without: str) -> str:
    values = json.loads(self.config.to_json())
    for name in (*run_folder.bookkeeping(values), *without):
      del values[name]
    digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
    return f'seed{self.config.seed}-{digest[:8]}'

  @property
  def folder(self) -> Path:
    """The folder that some study made for this config, or the one to be made."""
    found = sorted(self.root.glob(f'runs/*-{self.key}'))
    return found[0] if found else self.root / 'runs' / f'{self.label}-{self.key}'

  @property
  def record(self) -> dict[str, Any]:
    """`study_run.json`; empty before the run."""
    return read_record(self.folder)

  @property
  def metrics(self) -> dict[str, Any] | None:
    """Those of the last step; None if it is not done or was not evaluated last."""
    return _final_metrics(self.folder)

  def trained_alike(self) -> Path | None:
    """The folder of a finished run that differs in decoding alone, if there is one."""
    for file in sorted(self.root.glob(f'runs/*-seed{self.config.seed}-*/{RECORD}')):
      found = read_json(file).get('training') == self.training_key
      if found and file.parent != self.folder and _final_metrics(file.parent):
        return file.parent
    return None

  def take_training(self, other: Path) -> None:
    """Copies the last checkpoint of a run, and its log of the training.

    Nothing is copied into a run that has checkpoints of its own.
    """
    checkpoints, step = self.folder / 'checkpoints', str(read_record(other)['step'])
    if run_folder.has_checkpoints(self.folder):
      return
    lines = read_json_lines(other / 'metrics.jsonl')
    trained = [line for line in lines if line['kind'] == 'train']
    write_json_lines(self.folder / 'metrics.jsonl', trained)
    part = self.folder / 'checkpoint.part'
    shutil.rmtree(part, ignore_errors=True)  # of a copy that was killed
    shutil.copytree(other / 'checkpoints' / step, part)
    checkpoints.mkdir(exist_ok=True)
    part.rename(checkpoints / step)

  @contextlib.contextmanager
  def recording(self) -> Iterator[dict[str, Any]]:
    """Makes the folder; keeps how the run ends. The caller adds what it cost."""
    before = self.record
    self.folder.mkdir(parents=True, exist_ok=True)
    record = {
      'code': source_digests.current(),
      'training': self.training_key,
      'trained_in': before.get('trained_in'),  # another run's folder, if not here
      'status': 'running',
      'error': None,
      'step': None,
      'seconds': before.get('seconds', 0.0),
      'compiling': before.get('compiling', 0.0),  # seconds of `seconds`
    }
    write = lambda: atomic_write(self.folder / RECORD, json.dumps(record, indent=2))
    write()
    try:
      yield record
      record['status'] = 'finished'
      (self.folder / 'error.txt').unlink(missing_ok=True)  # of an attempt before
    except Exception as error:
      record.update(status='failed', error=f'{type(error).__name__}: {error}')
      atomic_write(self.folder / 'error.txt', traceback.format_exc())
      raise
    except BaseException:
      record['status'] = 'interrupted'
      raise
    finally:
      write()


def read_record(folder: Path) -> dict[str, Any]:
  """A run's `study_run.json`; empty before the run."""
  return read_json(folder / RECORD)


def environment(folder: Path) -> dict[str, Any]:
  """A run's `env.json`: machine, versions and revision."""
  return read_json(folder / 'env.json')


def outcome(folder: Path) -> dict[str, Any]:
  """What became of a run, as study.json has it."""
  record, metrics = read_record(folder), _final_metrics(folder)
  status = record.get('status', 'missing')
  if status == 'finished' and metrics is None:  # its last step is to be evaluated again
    status = 'missing'
  return {
    'status': status,
    'error': record.get('error'),
    'metrics': metrics and {k: v for k, v in metrics.items() if k != 'per_class'},
    'seconds': record.get('seconds'),
    'code': source_digests.digest(record['code']) if record else None,
  }


def _final_metrics(folder: Path) -> dict[str, Any] | None:
  metrics, record = read_json(folder / 'eval' / 'metrics.json'), read_record(folder)
  done = record.get('status') == 'finished' and metrics.get('step') == record['step']
  return metrics if done else None


def _revision(folder: Path) -> str:
  return f'git {environment(folder).get("git", "unknown")}'
