"""Runs a study: its rows over its seeds, each run in a folder of its own.

Started again, it goes on: finished runs are passed over, one that was cut off resumes,
one that failed is tried again. Several processes may share the results folder, on one
host or on many: each run is locked while a process is at it (flock, which local disks
and NFS 4 honour).
"""

import collections
import dataclasses
import json
import logging
import shlex
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tqdm
from ml_collections import ConfigDict

from gfl_jax.evaluation.coco_metrics import METRICS
from gfl_jax.files import write_whole
from gfl_jax.reports import study_report
from gfl_jax.training import experiment, loop, step, study_options, study_runs
from gfl_jax.training.programs import Programs
from gfl_jax.training.study_runs import Run

_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Study:
  """What is to be run.

  Attributes:
    name: of the study.
    title, table, question: for its report.
    rows: by name; each has `title`, `paper` (AP, AP50, ... in percent, or None),
      `note` and `change(config)`. See configs/ablations/table.py.
    baseline: the row that others are compared with.
    base: name of the config that the rows change.
    make_base: makes that config.
    overrides: 'FIELD=VALUE' each, set in the base before a row changes it.
    seeds: one run of each row for each.
    root: the results folder.
    command: that runs the study, for its report.
  """

  name: str
  title: str
  table: str
  question: str
  rows: Mapping[str, Any]
  baseline: str
  base: str
  make_base: Callable[[], ConfigDict]
  overrides: Sequence[str]
  seeds: Sequence[int]
  root: Path
  command: str

  @property
  def folder(self) -> Path:
    """Where study.json and the report are."""
    return self.root / self.name

  def config(self, row: str, seed: int) -> ConfigDict:
    """The config of a run.

    Raises:
      ValueError: it cannot run; names the row.
    """
    config = self.make_base()
    study_options.override(config, self.overrides)
    try:
      self.rows[row].change(config)
      config.seed = seed
      experiment.check_config(config)
    except ValueError as error:
      raise ValueError(f'row {row!r} on base {self.base!r}: {error}') from error
    return config.lock()

  def runs(self) -> dict[tuple[str, int], Run]:
    """By row and seed: seeds outside, so that all rows exist early."""
    return {
      (row, seed): Run(self.root, f'{self.name}.{row}', self.config(row, seed))
      for seed in self.seeds
      for row in self.rows
    }


def run_study(study: Study, *, job: tuple[int, int] = (0, 1)) -> list[str]:
  """Runs what is not finished, and reports.

  Args:
    study: what to run.
    job: (index, count): only every count-th run, from this index on.

  Returns:
    What failed: 'ROW, seed K: error' each.

  Raises:
    ValueError: a row that cannot run; a root with runs of another code version; data
      that is missing. All before the first run is begun.
    Stopped: a Ctrl-C or SIGTERM came; the run is saved and study.json written.
  """
  study_runs.check_code(study.root)
  runs = study.runs()
  programs = _programs(study, runs)
  index, count = job
  mine = dict(list(runs.items())[index::count])
  for (row, _), run in mine.items():
    if not run.metrics:
      _check_data(run.config, programs[row])
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
        _write(study, runs)
  report = write_report(study)
  _LOG.info('\nReport of %s: %s', study.name, report)
  return failed


def write_report(study: Study) -> Path:
  """Writes study.json and its report from the runs that are there; returns its path.

  Raises:
    ValueError: a row that cannot run; a root with runs of another code version.
  """
  study_runs.check_code(study.root)
  _write(study, study.runs())
  with study_runs.lock(study.folder / '.lock', wait=True):
    return study_report.write_study_report(study.folder)


def _programs(study: Study, runs: Mapping[tuple[str, int], Run]) -> dict[str, Programs]:
  """By row: rows that differ in traceable numbers alone share one compiled step.

  The numbers that they differ in become arguments of it; all else stays constants,
  which are faster.
  """
  configs = {row: runs[row, study.seeds[0]].config.to_dict() for row in study.rows}
  groups = collections.defaultdict(list)
  numbers = {}
  for row, config in configs.items():
    numbers[row] = {}
    for name in step.TRACEABLE:
      section, field = name.split('.')
      numbers[row][name] = config[section].pop(field)
    groups[json.dumps(config, sort_keys=True)].append(row)
  by_traced: dict[tuple[str, ...], Programs] = {}
  programs = {}
  for rows in groups.values():
    differs = lambda name, rows=rows: len({numbers[row][name] for row in rows}) > 1
    traced = tuple(filter(differs, step.TRACEABLE))
    shared = by_traced.setdefault(traced, Programs(traced))
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


def _write(study: Study, runs: Mapping[tuple[str, int], Run]) -> None:
  """Writes study.json from what is in the runs' folders."""
  records = [run.record for run in runs.values() if run.record]
  finished = [run for run in runs.values() if run.metrics]
  files = [run.folder / 'env.json' for run in finished]
  environment = json.loads(files[0].read_text()) if files else {}
  content = {
    'study': study.name,
    'title': study.title,
    'table': study.table,
    'question': study.question,
    'base': study.base,
    'overrides': list(study.overrides),
    'command': study.command,
    'code': study_runs.code_version(),
    'git': environment.get('git', ''),
    'environment': environment,
    'baseline': study.baseline,
    'compilations': sum(record['compilations'] for record in records),
    'seconds': sum(record['seconds'] for record in records),
    'rows': [_row(study, name, runs) for name in study.rows],
  }
  # Several processes may write it; each writes all that is there.
  with study_runs.lock(study.folder / '.lock', wait=True):
    write_whole(study.folder / 'study.json', json.dumps(content, indent=2))


def _row(study: Study, name: str, runs: Mapping[tuple[str, int], Run]) -> dict:
  row = study.rows[name]
  paper = dict(zip(METRICS, row.paper, strict=False)) if row.paper else None
  return {
    'name': name,
    'title': row.title,
    'paper': paper,
    'note': row.note,
    'runs': [_run(study, name, runs[name, seed]) for seed in study.seeds],
  }


def _run(study: Study, row: str, run: Run) -> dict[str, Any]:
  record, metrics = run.record, run.metrics
  status = 'missing'
  if metrics:
    metrics = {k: v for k, v in metrics.items() if k != 'per_class'}
    status = 'finished'
  elif record.get('status') == 'failed':
    status = 'failed'
  return {
    'seed': run.config.seed,
    'folder': run.folder.relative_to(study.root).as_posix(),
    'status': status,
    'error': record.get('error'),
    'command': _command(study, row, run),
    'metrics': metrics,
    'seconds': record.get('seconds'),
  }


def _command(study: Study, row: str, run: Run) -> str:
  """The command that makes this run alone: exact, whatever the study overrode."""
  plain = study.make_base()
  study.rows[row].change(plain)
  before, now = _flat(plain.to_dict()), _flat(run.config.to_dict())
  changed = [
    f'--config.{name}={value}' for name, value in now.items() if value != before[name]
  ]
  return shlex.join(
    [
      'python',
      'scripts/train.py',
      f'--config=configs/ablations/{study.name}.py:{row}@{study.base}',
      f'--workdir={run.folder}',
      *changed,
    ]
  )


def _flat(tree: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
  """Leaves by dotted name, without the copies of box and score in `model`."""
  leaves = {}
  for name, value in tree.items():
    if prefix + name in ('model.box', 'model.score'):
      continue
    below = isinstance(value, Mapping)
    leaves |= _flat(value, f'{prefix}{name}.') if below else {prefix + name: value}
  return leaves
