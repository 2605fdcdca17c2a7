"""What came out of a study: its study.json, read, compared and put into words.

All APs here are in points, 0 to 100, as papers give them; metrics.json has 0 to 1.
"""

import dataclasses
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy.stats

from gfl_jax.errors import MissingFileError, UserError
from gfl_jax.reports.study import statistics
from gfl_jax.reports.study.statistics import Estimate

STATUSES = ('finished', 'failed', 'running', 'interrupted', 'missing')
RERUN_SPREAD = 0.2  # points; differences of the paper up to here may be noise
BETTER, WORSE = 'better', 'worse'
SUGGESTIVE = {
  verdict: f'suggestive, {verdict} (not after correction)'
  for verdict in (BETTER, WORSE)
}
_ALPHA = 1 - statistics.LEVEL


@dataclasses.dataclass(frozen=True)
class Row:
  """One row of a study.

  Attributes:
    name: as on the command line.
    title: as in the tables.
    note: what is approximated; may be empty.
    paper: the paper's AP, AP50, ... in points; empty if it has no such row.
    runs: as in study.json, one per seed.
    baseline: name of the row that this one is compared with; None: the study's. Its
      own name: with none.
  """

  name: str
  title: str
  note: str
  paper: Mapping[str, float]
  runs: list[dict[str, Any]]
  baseline: str | None = None

  def points(self, metric: str) -> dict[int, float]:
    """A COCO metric of the finished runs in points, by seed."""
    return self._by_seed(lambda metrics: metrics.get(metric), scale=100)

  def diagnostics(self, name: str) -> dict[int, float]:
    """A diagnostic of the finished runs, by seed."""
    return self._by_seed(lambda metrics: (metrics.get('diagnostics') or {}).get(name))

  def _by_seed(self, read, scale: float = 1) -> dict[int, float]:
    """Only numbers: a metric is null or NaN where there was nothing to measure."""
    found = {run['seed']: read(run['metrics'] or {}) for run in self.finished}
    return {
      seed: scale * float(value)
      for seed, value in found.items()
      if value is not None and math.isfinite(value)
    }

  @property
  def finished(self) -> list[dict[str, Any]]:
    return [run for run in self.runs if run['status'] == 'finished']


@dataclasses.dataclass(frozen=True)
class Study:
  """A study: `about` is study.json without its rows."""

  about: dict[str, Any]
  rows: list[Row]

  @property
  def baseline(self) -> Row:
    return self._row(self.about['baseline'])

  def baseline_of(self, row: Row) -> Row:
    """The row that `row` is compared with: its own baseline, or the study's."""
    return self._row(row.baseline or self.about['baseline'])

  def _row(self, name: str) -> Row:
    return next(row for row in self.rows if row.name == name)

  @property
  def has_one_baseline(self) -> bool:
    return all(self.baseline_of(row) is self.baseline for row in self.rows)

  @property
  def seeds(self) -> list[int]:
    return sorted({run['seed'] for row in self.rows for run in row.runs})

  @property
  def has_paper(self) -> bool:
    return any(row.paper for row in self.rows)

  @property
  def runs(self) -> list[tuple[Row, dict[str, Any]]]:
    return [(row, run) for row in self.rows for run in row.runs]


def load_study(folder: str | os.PathLike) -> Study:
  """Reads a folder's study.json.

  Raises:
    FileNotFoundError: there is none.
    ValueError: it is not JSON, a field is missing, a baseline is not a row, a row or a
      seed of a row is there twice, or a status is unknown.
  """
  path = Path(folder) / 'study.json'
  if not path.exists():
    raise MissingFileError(f'{folder} is not the folder of a study: no study.json')
  try:
    about = json.loads(path.read_text())
    rows = [_read_row(row) for row in about.pop('rows')]
    _check(about, rows)
  except KeyError as error:
    raise UserError(f'{path} has no field {error}') from None
  except ValueError as error:
    raise UserError(f'{path}: {error}') from None
  return Study(about, rows)


def _read_row(row: dict) -> Row:
  paper = row['paper'] or {}
  points = {name: float(value) for name, value in paper.items() if value is not None}
  note, baseline = row['note'] or '', row.get('baseline')  # older ones lack it
  return Row(row['name'], row['title'], note, points, row['runs'], baseline)


def _check(about: dict, rows: list[Row]) -> None:
  for field in ('study', 'title', 'table', 'question', 'base', 'overrides', 'command'):
    about[field]
  names = [row.name for row in rows]
  for baseline in (about['baseline'], *(row.baseline for row in rows if row.baseline)):
    if baseline not in names:
      raise UserError(f'baseline {baseline!r} is not one of the rows {names}')
  if len(set(names)) < len(names):
    raise UserError(f'two rows share a name: {names}')
  for row in rows:
    seeds = [run['seed'] for run in row.runs]
    if len(set(seeds)) < len(seeds):
      raise UserError(f'row {row.name!r} has a seed twice: {seeds}')
    for run in row.runs:
      if run['status'] not in STATUSES:
        raise UserError(f'status {run["status"]!r} is not one of {STATUSES}')


class Comparison(NamedTuple):
  """A row against its baseline.

  Attributes:
    difference: of AP in points, paired by seed; None without a common seed.
    paper_difference: of the paper's APs; None where it lacks one.
    corrected_p: the difference's p value after Holm's correction over the study's
      rows; None without an interval.
    verdict: what is shown once all comparisons of the study are counted, in words;
      one of `SUGGESTIVE` where only the row's own 95 % interval excludes 0.
  """

  difference: Estimate | None
  paper_difference: float | None
  corrected_p: float | None
  verdict: str


def compare_rows(study: Study) -> dict[str, Comparison]:
  """Each row's `Comparison`, by its name, without those that are baselines alone."""
  baselines = {row.name: study.baseline_of(row) for row in study.rows}
  others = [row for row in study.rows if row is not baselines[row.name]]
  differences = {row.name: _difference(row, baselines[row.name]) for row in others}
  corrected = _holm(differences)
  comparisons = {}
  for row in others:
    baseline = baselines[row.name]
    difference, p_value = differences[row.name], corrected.get(row.name)
    verdict = _verdict(row, baseline, difference)
    if p_value is not None and p_value >= _ALPHA:
      verdict = SUGGESTIVE.get(verdict, verdict)
    both_measured = 'AP' in row.paper and 'AP' in baseline.paper
    comparisons[row.name] = Comparison(
      difference,
      row.paper['AP'] - baseline.paper['AP'] if both_measured else None,
      p_value,
      verdict,
    )
  return comparisons


def _difference(row: Row, other: Row) -> Estimate | None:
  return statistics.paired_difference(row.points('AP'), other.points('AP'))


def _holm(differences: Mapping) -> dict:
  """Corrected p values of the differences that have one, by their keys."""
  p_values = {
    key: difference.p_value
    for key, difference in differences.items()
    if difference is not None and difference.p_value is not None
  }
  return dict(zip(p_values, statistics.holm(list(p_values.values())), strict=True))


def _verdict(row: Row, baseline: Row, difference: Estimate | None) -> str:
  if difference is None:
    return 'not compared: no seed that both finished'
  if _share_runs(row, baseline):
    return 'the same runs'
  if difference.half_width is None:
    return 'one seed in common: noise not known'
  if not difference.is_beyond_noise:
    return 'no difference shown (noise)'
  return BETTER if difference.mean > 0 else WORSE


def _share_runs(row: Row, other: Row) -> bool:
  """Whether two rows have the same config: then their runs are the same."""
  folders = [{run['folder'] for run in r.finished} for r in (row, other)]
  return bool(folders[0] & folders[1])


class Pair(NamedTuple):
  """Two rows that the paper orders.

  Attributes:
    higher, lower: the rows, by the paper's AP.
    paper_difference: of the paper's APs in points, above 0.
    difference: ours, higher - lower, paired by seed.
    outcome: one of `OUTCOMES`, after Holm's correction over all pairs.
  """

  higher: Row
  lower: Row
  paper_difference: float
  difference: Estimate
  outcome: str

  @property
  def is_clear(self) -> bool:
    """Whether the paper's difference is more than reruns of it differ by."""
    return self.paper_difference > RERUN_SPREAD + 1e-9

  @property
  def is_suggestive(self) -> bool:
    """Whether only the pair's own interval, without correction, excludes 0."""
    return self.difference.is_beyond_noise and self.outcome not in SETTLED


# How our order of a pair can stand to the paper's, best first.
OUTCOMES = {
  'confirmed': 'the same way, beyond noise',
  'agrees': 'the same way, within noise',
  'equal': 'equal',
  'reversed': 'the other way, within noise',
  'contradicted': 'the other way, beyond noise',
}
SETTLED = ('confirmed', 'contradicted')


class Order(NamedTuple):
  """The order of the rows, ours against the paper's.

  Attributes:
    rows: those with the paper's AP and ours.
    tau: Kendall's tau-b between the paper's AP and our mean, its smallest differences
      included; None without an order.
    pairs: all pairs that the paper orders and that share a seed, from its largest
      difference to its smallest.
    num_unknown: pairs that the paper orders and ours cannot.
  """

  rows: list[Row]
  tau: float | None
  pairs: list[Pair]
  num_unknown: int

  def of(self, *outcomes: str) -> list[Pair]:
    return [pair for pair in self.pairs if pair.outcome in outcomes]


def compare_order(study: Study) -> Order:
  """Which of the paper's orderings of two rows our runs show."""
  in_paper = [row for row in study.rows if 'AP' in row.paper]
  ordered = [
    (high, low)
    for high in in_paper
    for low in in_paper
    if high.paper['AP'] > low.paper['AP']
  ]
  ordered.sort(key=lambda pair: pair[1].paper['AP'] - pair[0].paper['AP'])
  differences = {
    index: difference
    for index, pair in enumerate(ordered)
    if (difference := _difference(*pair)) is not None
  }
  corrected = _holm(differences)
  pairs = []
  for index, difference in differences.items():
    high, low = ordered[index]
    gap = high.paper['AP'] - low.paper['AP']
    is_settled = corrected.get(index, 1.0) < _ALPHA
    pairs.append(Pair(high, low, gap, difference, _outcome(difference, is_settled)))
  rows = [row for row in in_paper if row.points('AP')]
  paper = [row.paper['AP'] for row in rows]
  ours = [np.mean(list(row.points('AP').values())) for row in rows]
  has_order = len(set(paper)) > 1 and len(set(ours)) > 1
  tau = float(scipy.stats.kendalltau(paper, ours).statistic) if has_order else None
  return Order(rows, tau, pairs, len(ordered) - len(pairs))


def _outcome(difference: Estimate, is_settled: bool) -> str:
  if difference.mean == 0:
    return 'equal'
  if difference.mean > 0:
    return 'confirmed' if is_settled else 'agrees'
  return 'contradicted' if is_settled else 'reversed'


def diagnostic_names(study: Study) -> list[str]:
  """Diagnostics that a run has, in their own order, those of later runs after."""
  names: dict[str, None] = {}
  for _, run in study.runs:
    names |= dict.fromkeys((run['metrics'] or {}).get('diagnostics') or {})
  return list(names)
