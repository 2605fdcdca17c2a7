"""What came out of a study: its study.json, read and compared.

All APs here are in points, 0 to 100, as papers give them; metrics.json has 0 to 1.
"""

import dataclasses
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import scipy.stats

from gfl_jax.errors import MissingFileError, UserError
from gfl_jax.reports.study import statistics
from gfl_jax.reports.study.statistics import Estimate

STATUSES = ('finished', 'failed', 'running', 'interrupted', 'missing')
RERUN_SPREAD = 0.2  # points; differences of the paper up to this may be noise
BETTER, WORSE = 'better', 'worse'
UNCORRECTED = {word: f'{word}, but only before correction' for word in (BETTER, WORSE)}
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
    baseline: name of the row that this one is compared with. None: the study's
      baseline. Its own name: compared with none.
  """

  name: str
  title: str
  note: str
  paper: Mapping[str, float]
  runs: list[dict[str, Any]]
  baseline: str | None = None

  @property
  def finished(self) -> list[dict[str, Any]]:
    return [run for run in self.runs if run['status'] == 'finished']

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
    return sorted({run['seed'] for _, run in self.runs})

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
  note, baseline = row['note'] or '', row.get('baseline')  # missing in older files
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
    row, baseline: the two rows.
    by_seed: difference of AP in points, for the seeds that both finished.
    difference: its estimate; None without a common seed.
    paper_difference: of the paper's APs; None where it lacks one.
    corrected_p: the difference's p value after Holm's correction over the study's
      rows; None without an interval.
    conclusion: what is shown after the correction, in words; one of `UNCORRECTED`
      where only the row's own 95 % interval excludes 0.
  """

  row: Row
  baseline: Row
  by_seed: dict[int, float]
  difference: Estimate | None
  paper_difference: float | None
  corrected_p: float | None
  conclusion: str


def compare_rows(study: Study) -> dict[str, Comparison]:
  """Each row's `Comparison`, by its name; rows that are only a baseline have none."""
  pairs = [(row, study.baseline_of(row)) for row in study.rows]
  comparisons = {}
  for (row, baseline), by_seed, difference, p_value in _compare(
    [(row, baseline) for row, baseline in pairs if row is not baseline]
  ):
    gap = _gap(row, baseline) if 'AP' in row.paper and 'AP' in baseline.paper else None
    conclusion = _conclusion(row, baseline, difference, p_value)
    comparisons[row.name] = Comparison(
      row, baseline, by_seed, difference, gap, p_value, conclusion
    )
  return comparisons


def _gap(row: Row, other: Row) -> float:
  return row.paper['AP'] - other.paper['AP']


def _compare(pairs: list[tuple[Row, Row]]):
  """Of each pair of rows: itself, the difference of AP by seed, its estimate, and the p
  value, corrected over all pairs."""
  by_seed = [
    statistics.paired_differences(row.points('AP'), other.points('AP'))
    for row, other in pairs
  ]
  found = [statistics.estimate(values.values()) for values in by_seed]
  corrected = statistics.holm([one and one.p_value for one in found])
  return zip(pairs, by_seed, found, corrected, strict=True)


def _conclusion(row: Row, baseline: Row, difference, p_value: float | None) -> str:
  if difference is None:
    return 'not compared: no seed that both finished'
  # Rows of the same config share their runs.
  folders = [{run['folder'] for run in one.finished} for one in (row, baseline)]
  if folders[0] & folders[1]:
    return 'the same runs'
  if p_value is None:
    return 'one seed in common: noise unknown'
  if not difference.is_beyond_noise:
    return 'no difference shown (noise)'
  word = BETTER if difference.mean > 0 else WORSE
  return word if p_value < _ALPHA else UNCORRECTED[word]


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
  def is_uncorrected(self) -> bool:
    """Whether the pair is beyond noise only before the correction."""
    return self.difference.is_beyond_noise and self.outcome not in SETTLED


# How our order of a pair can relate to the paper's, best first.
OUTCOMES = {
  'confirmed': 'the same order, beyond noise',
  'agrees': 'the same order, within noise',
  'equal': 'equal',
  'reversed': 'the opposite order, within noise',
  'contradicted': 'the opposite order, beyond noise',
}
SETTLED = ('confirmed', 'contradicted')


class Order(NamedTuple):
  """The order of the rows, ours against the paper's.

  Attributes:
    rows: those with the paper's AP and ours.
    tau: Kendall's tau-b between the paper's AP and our mean; None without an order.
    pairs: all pairs that the paper orders and that share a seed, from its largest
      difference to its smallest.
    num_unknown: pairs that the paper orders and that share no seed.
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
  ordered = [(a, b) for a in in_paper for b in in_paper if _gap(a, b) > 0]
  ordered.sort(key=lambda pair: -_gap(*pair))
  pairs = [
    Pair(*pair, _gap(*pair), difference, _outcome(difference, p_value))
    for pair, _, difference, p_value in _compare(ordered)
    if difference is not None
  ]
  rows = [row for row in in_paper if row.points('AP')]
  paper = [row.paper['AP'] for row in rows]
  ours = [fmean(row.points('AP').values()) for row in rows]
  has_order = len(set(paper)) > 1 and len(set(ours)) > 1
  kendall: Any = scipy.stats.kendalltau  # for pyright, its result has no attributes
  tau = float(kendall(paper, ours).statistic) if has_order else None
  return Order(rows, tau, pairs, len(ordered) - len(pairs))


def _outcome(difference: Estimate, p_value: float | None) -> str:
  if difference.mean == 0:
    return 'equal'
  is_settled = p_value is not None and p_value < _ALPHA
  if difference.mean > 0:
    return 'confirmed' if is_settled else 'agrees'
  return 'contradicted' if is_settled else 'reversed'
