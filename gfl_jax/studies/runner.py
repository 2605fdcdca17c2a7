"""Runs a study: its rows over its seeds, each run in a folder of its own.

Started again, it continues: finished runs are skipped, an interrupted one resumes, a
failed one starts again. Several processes may work in one results folder, on one host
or on many: a process locks each run while it trains it (flock, which local disks and
NFS 4 honour). A run that differs from a finished one in its decoding alone takes that
one's trained network.
"""

import logging
from pathlib import Path
from typing import Any

import jax

from gfl_jax import data, files
from gfl_jax.errors import UserError
from gfl_jax.reports.markup import duration
from gfl_jax.reports.study import page
from gfl_jax.studies import record
from gfl_jax.studies.plan import Study
from gfl_jax.studies.runs import Run, check_code
from gfl_jax.training import experiment, loop

_LOG = logging.getLogger(__name__)


def run_study(study: Study, *, job: tuple[int, int] = (0, 1)) -> list[str]:
  """Runs what is not finished, and writes the report.

  Args:
    study: what to run.
    job: (index, count): only every count-th run, from this index on.

  Returns:
    A line 'ROW, seed K: error' for each run that failed.

  Raises:
    ValueError: before the first run begins, for a row that cannot run, a root with
      runs of other code, a study.json of another base or other overrides, missing
      data, or a process that is one of several.
    Preempted: after Ctrl-C or SIGTERM; the run is saved and study.json written.
  """
  if jax.process_count() > 1:
    raise UserError(
      'a study runs on the devices of one process, and this is one of'
      f' {jax.process_count()} processes: start a study on each host, with'
      ' --jobs=INDEX/COUNT'
    )
  files.check_folder(study.root, '--root')
  check_code(study.root)
  runs = study.runs()
  record.finished_runs(study, runs)  # an error of study.json comes before any run
  opened: dict[str, data.Dataset] = {}
  mine = dict(list(runs.items())[job[0] :: job[1]])
  for run in mine.values():
    if not run.metrics:
      _dataset(run.config, opened)  # an error of the data comes before any run
  record.write(study, runs)
  for line in record.missing_baselines(study):
    _LOG.info('%s', line)
  failed = []
  for number, ((row, seed), run) in enumerate(mine.items(), 1):
    name = f'{study.module.ROWS[row].title}, seed {seed}'
    place = f'Run {number} of {len(mine)}: {name}'
    with files.lock(study.root / 'runs' / '.locks' / run.key, wait=False) as held:
      if not held or run.metrics:
        state = 'is finished' if held else 'runs in another process'
        _LOG.info('%s: skipped, it %s.', place, state)
        continue
      _LOG.info('\n%s%s (%s)', place, _time_left(mine, runs), run.folder)
      try:
        _train(run, _dataset(run.config, opened))
      except Exception as error:
        failed.append(f'{name}: {type(error).__name__}: {error}')
        _LOG.warning('This run failed, the next one begins. %s', failed[-1])
      finally:
        record.write(study, runs)
  _LOG.info('\nReport of %s: %s', study.name, write_report(study))
  return failed


def write_report(study: Study) -> Path:
  """Writes the report of a study again, without running anything; returns its path.

  It covers all runs of study.json, not only those chosen, whatever code made them.

  Raises:
    ValueError: there is no study.json, or it is of another base or other overrides.
  """
  record.read(study.folder)  # an error before the lock makes the folder
  with files.lock(study.folder / '.lock', wait=True):
    record.refresh(study)
    return page.write_study_report(study.folder)


def _dataset(config: Any, opened: dict[str, data.Dataset]) -> data.Dataset:
  """The data set of a run's config, from `opened` if it is there, else put there."""
  key = config.data.to_json_best_effort(sort_keys=True)
  try:
    if key not in opened:
      opened[key] = experiment.load_dataset(config)
    experiment.check_num_classes(config, opened[key])
  except (ValueError, OSError) as error:
    # These messages name the flags of scripts/train.py.
    raise UserError(str(error).replace('--config.', '--set=')) from error
  return opened[key]


def _train(run: Run, dataset: data.Dataset) -> None:
  with run.recording() as record:
    if other := run.take_trained_network():
      _LOG.info('Takes the trained network of %s; only decoding differs.', other)
      record['trained_in'] = other
    record['step'] = loop.train(run.config, run.folder, dataset)['step']


def _time_left(mine: dict[Any, Run], runs: dict[Any, Run]) -> str:
  """The time and number of the unfinished runs in `mine`; '' if none is finished yet.

  The time of a run is the mean of the finished ones in `runs`.
  """
  finished = [run.record for run in runs.values() if run.metrics]
  # A run that took a trained network says nothing about the time of training.
  finished = [r for r in finished if not r.get('trained_in')] or finished
  if not finished:
    return ''
  left = sum(not run.metrics for run in mine.values())
  seconds = left * sum(r['seconds'] for r in finished) / len(finished)
  return f'; about {duration(seconds)} left, runs to do: {left}'
