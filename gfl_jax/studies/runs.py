"""The runs of studies in one results folder: found, locked, recorded, never mixed.

`ROOT/runs/` holds the run folders that all studies below ROOT use: a run is found by
its config and seed, whichever study made it. `study_run.json` in each holds the code
that made it, its state, its time, and a digest of what it was trained with.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import shutil
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax.monitoring
from ml_collections import ConfigDict

from gfl_jax.errors import UserError
from gfl_jax.files import atomic_write, read_json, read_json_lines, write_json_lines
from gfl_jax.studies import source_digests
from gfl_jax.training import run_folder

RECORD = 'study_run.json'


def check_code(root: Path) -> None:
  """Raises a ValueError if other code than the present made a run below `root`."""
  for file in sorted(root.glob(f'runs/*/{RECORD}')):
    if differing := source_digests.difference(read_json(file)['code']):
      raise UserError(
        f'{file.parent} was made by other code, and a study does not mix runs of'
        f' different code: {differing}. Give another --root, or check out the code that'
        f' made it (git {read_json(file.with_name("env.json")).get("git", "unknown")})'
      )


@dataclasses.dataclass(frozen=True)
class Run:
  """One row with one seed.

  Attributes:
    root: the results folder.
    label: 'STUDY.ROW', with which the name of a new folder begins.
    config: of the run, with its seed.
  """

  root: Path
  label: str
  config: ConfigDict

  @functools.cached_property
  def key(self) -> str:
    """A name of the config, 'seed3-0123abcd'; the same if all numbers are the same."""
    return self._digest()

  def _digest(self, *without: str) -> str:
    values = json.loads(self.config.to_json())
    for name in (*run_folder.bookkeeping(values), *without):
      del values[name]
    digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
    return f'seed{self.config.seed}-{digest[:8]}'

  @property
  def folder(self) -> Path:
    """The folder that a study has made for this config, or the one to make."""
    found = sorted(self.root.glob(f'runs/*-{self.key}'))
    return found[0] if found else self.root / 'runs' / f'{self.label}-{self.key}'

  @property
  def record(self) -> dict[str, Any]:
    """The content of `study_run.json`; empty before the run."""
    return read_json(self.folder / RECORD)

  @property
  def metrics(self) -> dict[str, Any] | None:
    """The metrics of the last step; None if the run or that evaluation is not done."""
    return _final_metrics(self.folder)

  def take_trained_network(self) -> str | None:
    """Takes the network of a finished run that differs in its decoding alone, if any.

    Copies that run's last checkpoint and training log, unless this run already has
    checkpoints. Returns the name of that run's folder.
    """
    trained_alike = self._digest('decode')
    for file in sorted(self.root.glob(f'runs/*-seed{self.config.seed}-*/{RECORD}')):
      other, record = file.parent, read_json(file)
      alike = record.get('training') == trained_alike and other != self.folder
      if alike and _final_metrics(other):
        if not run_folder.has_checkpoints(self.folder):
          self._copy_training(other, str(record['step']))
        return other.name
    return None

  def _copy_training(self, other: Path, step: str) -> None:
    lines = read_json_lines(other / 'metrics.jsonl')
    trained = [line for line in lines if line['kind'] == 'train']
    write_json_lines(self.folder / 'metrics.jsonl', trained)
    checkpoints, part = self.folder / 'checkpoints', self.folder / 'checkpoint.part'
    shutil.rmtree(part, ignore_errors=True)  # of a copy that was killed
    shutil.copytree(other / 'checkpoints' / step, part)
    checkpoints.mkdir(exist_ok=True)
    part.rename(checkpoints / step)

  @contextlib.contextmanager
  def recording(self) -> Iterator[dict[str, Any]]:
    """Makes the folder; records the code, how the run ends, and the time it takes.

    The caller sets `step` and `trained_in` of the dict.
    """
    before, start, compiled = self.record, time.perf_counter(), _seconds_compiling()[0]
    self.folder.mkdir(parents=True, exist_ok=True)
    record = {
      'code': source_digests.current(),
      'training': self._digest('decode'),  # alike if only the decoding differs
      'trained_in': before.get('trained_in'),  # the run whose network it took, if any
      'status': 'running',
      'seconds': before.get('seconds', 0.0),
      'compiling': before.get('compiling', 0.0),  # a part of `seconds`
    }
    write = lambda: atomic_write(self.folder / RECORD, json.dumps(record, indent=2))
    write()
    try:
      yield record
      record['status'] = 'finished'
      (self.folder / 'error.txt').unlink(missing_ok=True)  # of an earlier attempt
    except Exception as error:
      record.update(status='failed', error=f'{type(error).__name__}: {error}')
      atomic_write(self.folder / 'error.txt', traceback.format_exc())
      raise
    except BaseException:
      record['status'] = 'interrupted'
      raise
    finally:
      record['seconds'] += time.perf_counter() - start
      record['compiling'] += _seconds_compiling()[0] - compiled
      write()


def outcome(folder: Path) -> dict[str, Any]:
  """State, numbers and time of a run, as study.json holds them."""
  record, metrics = read_json(folder / RECORD), _final_metrics(folder)
  status = record.get('status', 'missing')
  if status == 'finished' and metrics is None:  # its last step is not evaluated
    status = 'missing'
  return {
    'status': status,
    'error': record.get('error'),
    'metrics': metrics and {k: v for k, v in metrics.items() if k != 'per_class'},
    'seconds': record.get('seconds'),
    'code': source_digests.digest(record['code']) if record else None,
  }


def _final_metrics(folder: Path) -> dict[str, Any] | None:
  record = read_json(folder / RECORD)
  metrics = read_json(folder / 'eval' / 'metrics.json')
  done = record.get('status') == 'finished' and metrics.get('step') == record['step']
  return metrics if done else None


@functools.cache
def _seconds_compiling() -> list[float]:
  """One number: the seconds that this process has compiled since the first call."""
  total = [0.0]

  def add(event: str, duration_secs: float, **_) -> None:
    if event == '/jax/core/compile/backend_compile_duration':
      total[0] += duration_secs

  jax.monitoring.register_event_duration_secs_listener(add)
  return total
