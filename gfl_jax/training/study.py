"""Runs a study: its rows over its seeds, each run in a folder of its own.

Started again, it goes on: finished runs are passed over, one that was cut off resumes,
one that failed is tried again. Several processes may share the results folder, on one
host or on many: each run is locked while a process is at it (flock, which local disks
and NFS 4 honour). A run that differs from a finished one in decoding alone takes its
trained network.
"""

import collections
import json
import logging
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

import jax
import tqdm
from ml_collections import ConfigDict

from gfl_jax import data
from gfl_jax.reports import study_report
from gfl_jax.training import experiment, loop, step, study_file, study_runs
from gfl_jax.training.programs import Programs
from gfl_jax.training.study_plan import Study
from gfl_jax.training.study_runs import Run

_LOG = logging.getLogger(__name__)


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
    Stopped: a Ctrl-C or SIGTERM came; the run is saved and study.json written.
  """
  if jax.process_count() > 1:
    raise ValueError(
      "a study runs on one process's devices, this is one of"
      f' {jax.process_count()} processes: give each host its share with'
      ' --jobs=INDEX/COUNT'
    )
  study_runs.check_code(study.root)
  runs = study.runs()
  programs = _programs(study, runs)
  index, count = job
  mine = dict(list(runs.items())[index::count])
  for (row, _), run in mine.items():
    if not run.metrics:
      _check_data(run.config, programs[row])
  study_file.write(study, runs)
  failed = []
  for number, ((row, seed), run) in enumerate(mine.items(), 1):
    name = f'{study.rows[row].title}, seed {seed}'
    place = f'Run {number} of {len(mine)}: {name}'
    with study_runs.lock(study.root / 'runs' / '.locks' / run.key, wait=False) as held:
      if not held:
        _LOG.info('%s: another process is at it, passed over.', place)
        continue
      if run.metrics:
        _LOG.info('%s: finished before.', place)
        continue
      left = sum(not other.metrics for other in mine.values())
      _LOG.info('\n%s%s (%s)', place, _time_left(runs.values(), left), run.folder)
      try:
        _train(run, programs[row])
      except Exception as error:
        failed.append(f'{name}: {type(error).__name__}: {error}')
        _LOG.warning('Failed, going on. %s', failed[-1])
      finally:
        study_file.write(study, runs)
  report = write_report(study)
  _LOG.info('\nReport of %s: %s', study.name, report)
  return failed


def write_report(study: Study) -> Path:
  """Writes a study's report again, and returns its path; runs nothing.

  It is of all that study.json has, whatever code made its runs and whatever rows and
  seeds `study` chooses. A study without one is written from the runs that are there.

  Raises:
    ValueError: study.json is of another base or other overrides; without one: a row
      that cannot run, or a root with runs of another code version.
  """
  if study_file.exists(study):
    study_file.refresh(study)
  else:
    study_runs.check_code(study.root)
    study_file.write(study, study.runs())
  with study_runs.lock(study.folder / '.lock', wait=True):
    return study_report.write_study_report(study.folder)


def _programs(study: Study, runs: Mapping[tuple[str, int], Run]) -> dict[str, Programs]:
  """By row: rows that differ in traceable numbers alone share one compiled step.

  The numbers that they differ in become arguments of it; all else stays constants,
  which are faster.
  """
  configs = {row: runs[row, study.seeds[0]].config.to_dict() for row in study.chosen}
  groups = collections.defaultdict(list)
  numbers = {}
  for row, config in configs.items():
    numbers[row] = {}
    for name in step.TRACEABLE:
      section, field = name.split('.')
      numbers[row][name] = config[section].pop(field)
    groups[json.dumps(config, sort_keys=True)].append(row)
  by_traced: dict[tuple[str, ...], Programs] = {}
  datasets: dict[str, data.Dataset] = {}
  programs = {}
  for rows in groups.values():
    differs = lambda name, rows=rows: len({numbers[row][name] for row in rows}) > 1
    traced = tuple(filter(differs, step.TRACEABLE))
    shared = by_traced.setdefault(traced, Programs(traced, datasets))
    programs |= dict.fromkeys(rows, shared)
  return programs


def _check_data(config: ConfigDict, programs: Programs) -> None:
  try:
    experiment.check_classes(config, programs.dataset(config.data))
  except (ValueError, OSError) as error:
    # What it advises is the flag of a single run.
    raise ValueError(str(error).replace('--config.', '--set=')) from error


def _train(run: Run, programs: Programs) -> None:
  start, compiled = time.perf_counter(), programs.num_compiled
  with run.recording() as record:
    seconds, compilations = record['seconds'], record['compilations']
    try:
      other = run.trained_alike()
      if other:
        _LOG.info('Trained as %s: decoded and evaluated alone.', other.name)
        run.take_training(other)
        record['trained_in'] = other.name
      metrics = loop.train(run.config, run.folder, programs)
      record['step'] = metrics['step']
    finally:
      record['seconds'] = seconds + time.perf_counter() - start
      record['compilations'] = compilations + programs.num_compiled - compiled


def _time_left(runs: Iterable[Run], left: int) -> str:
  seconds = [run.record['seconds'] for run in runs if run.metrics]
  if not seconds:
    return ''
  mean = sum(seconds) / len(seconds)
  return f'; about {tqdm.tqdm.format_interval(mean * left)} left for {left}'
