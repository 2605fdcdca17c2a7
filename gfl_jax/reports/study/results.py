"""What came out of a study: its study.json, read and compared.

All APs here are in points, 0 to 100, as papers give them; metrics.json has 0 to 1.
"""

import dataclasses
import itertools
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
    baseline: name of the row that this one is compared with; its own: with none.
  """

  name: str
  title: str
  note: str
  paper: Mapping[str, float]
  runs: list[dict[str, Any]]
  baseline: str

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
    """The row that `row` is compared with."""
    return self._row(row.baseline)

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
    rows = [_read_row(row, about['baseline']) for row in about.pop('rows')]
    _check(about, rows)
  except KeyError as error:
    raise UserError(f'{path} has no field {error}') from None
  except ValueError as error:
    raise UserError(f'{path}: {error}') from None
  return Study(about, rows)


def _read_row(row: dict, baseline: str) -> Row:
  """A row of study.json; baseline: the study's, if the row has none of its own."""
  paper = row['paper'] or {}
  points = {name: float(value) for name, value in paper.items() if value is not None}
  own = row.get('baseline') or baseline  # missing in older files
  return Row(row['name'], row['title'], row['note'] or '', points, row['runs'], own)


def _check(about: dict, rows: list[Row]) -> None:
  for field in ('study', 'title', 'table', 'question', 'base', 'overrides', 'command'):
    about[field]
  names = [row.name for row in rows]
  for baseline in (about['baseline'], *(row.baseline for row in rows)):
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


# How our order of two rows can relate to the paper's, best first.
OUTCOMES = {
  'confirmed': 'the same order, beyond noise',
  'agrees': 'the same order, within noise',
  'equal': 'equal',
  'reversed': 'the opposite order, within noise',
  'contradicted': 'the opposite order, beyond noise',
}
SETTLED = ('confirmed', 'contradicted')


class Comparison(NamedTuple):
  """Our APs of two rows, paired by seed.

  Attributes:
    row, other: a row and its baseline; or two rows that the paper orders, first the one
      with its higher AP.
    by_seed: difference row - other in points, for the seeds that both finished.
    difference: its estimate; None without a common seed.
    corrected_p: the difference's p value after Holm's correction over all comparisons
      made together; None without an interval.
  """

  row: Row
  other: Row
  by_seed: dict[int, float]
  difference: Estimate | None
  corrected_p: float | None

  @property
  def paper_difference(self) -> float | None:
    """Of the paper's APs in points; None where it lacks one."""
    has_both = 'AP' in self.row.paper and 'AP' in self.other.paper
    return _paper_difference(self.row, self.other) if has_both else None

  @property
  def is_clear(self) -> bool:
    """Whether the paper's difference is more than reruns of it differ by."""
    gap = self.paper_difference
    return gap is not None and abs(gap) > RERUN_SPREAD + 1e-9

  @property
  def is_settled(self) -> bool:
    """Whether the difference is beyond noise after the correction."""
    return self.corrected_p is not None and self.corrected_p < _ALPHA

  @property
  def is_uncorrected(self) -> bool:
    """Whether the difference is beyond noise only before the correction."""
    found = self.difference
    return found is not None and found.is_beyond_noise and not self.is_settled

  @property
  def conclusion(self) -> str:
    """What is shown of the row, in words; see also `UNCORRECTED`."""
    if self.difference is None:
      return 'not compared: no seed that both finished'
    # Rows of the same config share their runs.
    ours, others = ({run['folder'] for run in one.finished} for one in self[:2])
    if ours & others:
      return 'the same runs'
    if self.corrected_p is None:
      return 'one seed in common: noise unknown'
    word = BETTER if self.difference.mean > 0 else WORSE
    if self.is_uncorrected:
      return UNCORRECTED[word]
    return word if self.is_settled else 'no difference shown (noise)'

  @property
  def outcome(self) -> str:
    """Our order of a pair that the paper orders: 'unknown' or one of `OUTCOMES`."""
    if self.difference is None:
      return 'unknown'
    if self.difference.mean > 0:
      return 'confirmed' if self.is_settled else 'agrees'
    if self.difference.mean < 0:
      return 'contradicted' if self.is_settled else 'reversed'
    return 'equal'


def compare_rows(study: Study) -> dict[str, Comparison]:
  """Each row's `Comparison`, by its name; rows that are only a baseline have none."""
  pairs = [(row, study.baseline_of(row)) for row in study.rows]
  found = _compare([(row, baseline) for row, baseline in pairs if row is not baseline])
  return {one.row.name: one for one in found}


def _compare(pairs: list[tuple[Row, Row]]) -> list[Comparison]:
  """Compares the two rows of each pair, with a correction over all pairs."""
  by_seed = [
    statistics.paired_differences(row.points('AP'), other.points('AP'))
    for row, other in pairs
  ]
  found = [statistics.estimate(values.values()) for values in by_seed]
  corrected = statistics.holm([one and one.p_value for one in found])
  parts = zip(pairs, by_seed, found, corrected, strict=True)
  return [Comparison(*pair, values, one, p) for pair, values, one, p in parts]


def _paper_difference(row: Row, other: Row) -> float:
  return row.paper['AP'] - other.paper['AP']


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
  pairs: list[Comparison]
  num_unknown: int

  def of(self, *outcomes: str) -> list[Comparison]:
    return [pair for pair in self.pairs if pair.outcome in outcomes]


def compare_order(study: Study) -> Order:
  """Which of the paper's orderings of two rows our runs show."""
  in_paper = [row for row in study.rows if 'AP' in row.paper]
  ordered = [
    pair for pair in itertools.permutations(in_paper, 2) if _paper_difference(*pair) > 0
  ]
  ordered.sort(key=lambda pair: -_paper_difference(*pair))
  pairs = [pair for pair in _compare(ordered) if pair.difference]
  rows = [row for row in in_paper if row.points('AP')]
  paper = [row.paper['AP'] for row in rows]
  ours = [fmean(row.points('AP').values()) for row in rows]
  has_order = len(set(paper)) > 1 and len(set(ours)) > 1
  kendall: Any = scipy.stats.kendalltau  # for pyright, its result has no attributes
  tau = float(kendall(paper, ours).statistic) if has_order else None
  return Order(rows, tau, pairs, len(ordered) - len(pairs))
