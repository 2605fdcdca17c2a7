"""Runs a study: its rows over its seeds, each run in a folder of its own.

Started again, it goes on: finished runs are passed over, one that was cut off resumes,
one that failed is tried again. Several processes may share the results folder, on one
host or on many: each run is locked while a process is at it (flock, which local disks
and NFS 4 honour). A run that differs from a finished one in decoding alone takes its
trained network.
"""

import functools
import logging
import time
from pathlib import Path
from typing import Any

import jax
import jax.monitoring
from ml_collections import ConfigDict

from gfl_jax import data, files
from gfl_jax.errors import UserError
from gfl_jax.reports.study import page
from gfl_jax.studies import record
from gfl_jax.studies.plan import Study
from gfl_jax.studies.runs import Run, check_code
from gfl_jax.training import experiment, loop

_LOG = logging.getLogger(__name__)
_COMPILED = '/jax/core/compile/backend_compile_duration'  # as jax names it


def run_study(study: Study, *, job: tuple[int, int] = (0, 1)) -> list[str]:
  """Runs what is not finished, and reports.

  Args:
    study: what to run.
    job: (index, count): only every count-th run, from this index on.

  Returns:
    What failed: 'ROW, seed K: error' each.

  Raises:
    ValueError: a row that cannot run; a root with runs of another code version; a
      study.json of another base or other overrides; data that is missing; a process
      that is one of several. All before the first run is begun.
    Preempted: a Ctrl-C or SIGTERM came; the run is saved and study.json written.
  """
  if jax.process_count() > 1:
    raise UserError(
      "a study runs on one process's devices, this is one of"
      f' {jax.process_count()} processes: give each host its share with'
      ' --jobs=INDEX/COUNT'
    )
  files.check_folder(study.root, '--root')
  check_code(study.root)
  runs = study.runs()
  record.check(study, runs)
  datasets = _Datasets()
  index, count = job
  mine = dict(list(runs.items())[index::count])
  for run in mine.values():
    if not run.metrics:
      _check_data(run.config, datasets)
  record.write(study, runs)
  for line in record.missing_baselines(study):
    _LOG.info('%s', line)
  failed = []
  for number, ((row, seed), run) in enumerate(mine.items(), 1):
    name = f'{study.rows[row].title}, seed {seed}'
    place = f'Run {number} of {len(mine)}: {name}'
    with files.lock(study.root / 'runs' / '.locks' / run.key, wait=False) as held:
      if not held:
        _LOG.info('%s: another process is at it, passed over.', place)
        continue
      if run.metrics:
        _LOG.info('%s: finished before.', place)
        continue
      left = sum(not other.metrics for other in mine.values())
      records = [other.record for other in runs.values() if other.metrics]
      time_left = _time_left(records, left)
      _LOG.info('\n%s%s (%s)', place, time_left, run.folder)
      try:
        _train(run, datasets)
      except Exception as error:
        failed.append(f'{name}: {type(error).__name__}: {error}')
        _LOG.warning('Failed, going on. %s', failed[-1])
      finally:
        record.write(study, runs)
  report = write_report(study)
  _LOG.info('\nReport of %s: %s', study.name, report)
  return failed


def write_report(study: Study) -> Path:
  """Writes a study's report again, and returns its path; runs nothing.

  It is of all that study.json has, whatever code made its runs and whatever rows and
  seeds `study` chooses.

  Raises:
    ValueError: there is no study.json, or it is of another base or other overrides.
  """
  record.refresh(study)
  with files.lock(study.folder / '.lock', wait=True):
    return page.write_study_report(study.folder)


class _Datasets:
  """The data sets of a study, each opened once."""

  def __init__(self):
    self._opened: dict[str, data.Dataset] = {}

  def get(self, config: Any) -> data.Dataset:
    """That of a run's config."""
    key = config.data.to_json_best_effort(sort_keys=True)
    if key not in self._opened:
      self._opened[key] = experiment.load_dataset(config)
    return self._opened[key]


def _check_data(config: ConfigDict, datasets: _Datasets) -> None:
  try:
    experiment.check_classes(config, datasets.get(config))
  except (ValueError, OSError) as error:
    # What it advises is the flag of a single run.
    raise UserError(str(error).replace('--config.', '--set=')) from error


def _train(run: Run, datasets: _Datasets) -> None:
  start, spent = time.perf_counter(), _compiling()[0]
  with run.recording() as record:
    before = {name: record[name] for name in ('seconds', 'compiling')}
    try:
      other = run.trained_alike()
      if other:
        _LOG.info('Trained as %s: decoded and evaluated alone.', other.name)
        run.take_training(other)
        record['trained_in'] = other.name
      metrics = loop.train(run.config, run.folder, datasets.get(run.config))
      record['step'] = metrics['step']
    finally:
      record['seconds'] = before['seconds'] + time.perf_counter() - start
      record['compiling'] = before['compiling'] + _compiling()[0] - spent


@functools.cache
def _compiling() -> list[float]:
  """One number: the seconds that this process has compiled since the first call."""
  total = [0.0]

  def add(event: str, duration_secs: float, **_) -> None:
    if event == _COMPILED:
      total[0] += duration_secs

  jax.monitoring.register_event_duration_secs_listener(add)
  return total


def _time_left(records: list[dict[str, Any]], left: int) -> str:
  """In words, from the runs that are finished; nothing before the first.

  Args:
    records: of the finished runs.
    left: how many are to be done.
  """
  # A run that took a trained network from another one says nothing about training.
  records = [r for r in records if not r.get('trained_in')] or records
  if not records:
    return ''
  seconds = left * sum(record['seconds'] for record in records) / len(records)
  minutes, seconds = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  clock = f'{hours}:{minutes:02}:{seconds:02}' if hours else f'{minutes}:{seconds:02}'
  return f'; about {clock} left, {left} {"run" if left == 1 else "runs"} to do'
