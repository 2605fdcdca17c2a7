"""The diagnostics of a study: what they say of the rows, and their table.

See evaluation/diagnostics.py for how each is measured.
"""

import re
from collections.abc import Sequence
from statistics import fmean
from typing import NamedTuple

from gfl_jax.evaluation.diagnostics import LEVELS
from gfl_jax.reports import diagnostic_sections
from gfl_jax.reports.html_page import details, paragraph
from gfl_jax.reports.study import statistics
from gfl_jax.reports.study.comparison_tables import quoted, with_interval
from gfl_jax.reports.study.results import Row, Study
from gfl_jax.reports.study.statistics import Estimate
from gfl_jax.reports.tables import DASH, Table, number

STYLE = """
.diagnostics td:last-child { min-width: 24em; color: var(--soft); }
.good { color: #047857; font-weight: 650; } .bad { color: #b91c1c; font-weight: 650; }
"""
LEGEND = (
  '✓ and ✗: better or worse than the baseline of the row, by the column “good is”: the '
  'paired 95 % interval excludes 0. There is no correction: about one comparison in '
  'twenty gets a mark by chance.'
)
_COUNTS = {
  'true_positives': 'candidates with an IoU of at least 0.5 with a true box of the '
  'class',
  'true_negatives': 'candidates with an IoU below 0.1 with every true box',
  'matched_detections': 'detections matched to a true box; the measures of sides are '
  'about these',
}
_MEANINGS = {
  **_COUNTS,
  **diagnostic_sections.SCORE_ROWS,
  **diagnostic_sections.SIDE_ROWS,
  'spread_ratio': 'mean predicted over mean true standard deviation',
  'positive_iou_mean': 'IoU of the true positives with their true box',
  'positive_iou_std': 'its standard deviation over all',
  'positive_centerness_mean': 'centerness of their anchor points in it',
  'positive_centerness_std': 'its standard deviation over all',
  **{
    f'coverage_{level}': f'share of annotated sides in the central {level} % interval'
    for level in LEVELS
  },
}
_LOWER = ('negatives_above', 'outranking', 'calibration_error', 'side_', 'sides_at')
_PER_KIND = ('spread_ratio', 'side_crps', 'side_nll')
# The diagnostics that the sentences name.
_NAMED = {
  'Ranking': {
    'negatives_above_a_positive': 'share of negatives above a positive',
    'outranking_negatives': 'share of outranking negatives',
    'score_iou_correlation': 'correlation of score and IoU',
    'calibration_error': 'calibration error',
  },
  'Sides': {
    'side_crps': 'CRPS in px',
    'side_nll': 'negative log likelihood',
    'coverage_50': 'coverage of the 50 % interval',
    'spread_correlation': 'correlation of predicted and true spread',
  },
}
_MAX_OPEN = 12  # rows of the table that the page shows unfolded


class _Sense(NamedTuple):
  """Which values of a diagnostic are good: high, low, or near a number."""

  text: str
  sign: int = 0  # 1: higher is good; -1: lower is good; 0: neither
  nominal: float | None = None

  def goodness(self, value: float) -> float:
    """Higher is better; always 0 where a diagnostic is neither good nor bad."""
    return self.sign * value if self.nominal is None else -abs(value - self.nominal)


def _sense(name: str) -> _Sense:
  if name.startswith('coverage_'):
    nominal = int(name.removeprefix('coverage_')) / 100
    return _Sense(f'{nominal:g}', nominal=nominal)
  if name.startswith('spread_ratio'):
    return _Sense('1', nominal=1.0)
  if 'correlation' in name:
    return _Sense('higher', 1)
  return _Sense('lower', -1) if name.startswith(_LOWER) else _Sense(DASH)


def _goodness(row: Row, name: str) -> dict[int, float]:
  sense = _sense(name)
  return {seed: sense.goodness(value) for seed, value in row.diagnostics(name).items()}


def _gain(study: Study, row: Row, name: str) -> Estimate | None:
  """How much better a row is than its baseline, paired by seed."""
  ours, baseline = (_goodness(one, name) for one in (row, study.baseline_of(row)))
  return statistics.estimate(statistics.paired_differences(ours, baseline).values())


def findings(study: Study) -> list[str]:
  """A sentence each on ranking and on sides: the baseline's value and the best.

  About the study's baseline and the rows that are compared with it.
  """
  measured = set(_measured(study))
  if 'negatives_above_a_positive' in measured:  # older studies have only the other
    measured.discard('outranking_negatives')
  rows = [row for row in study.rows if study.baseline_of(row) is study.baseline]
  told = []
  for topic, measures in _NAMED.items():
    texts = [
      _against_best(study, rows, name, text)
      for name, text in measures.items()
      if name in measured
    ]
    if texts:
      told.append(
        f'{topic}, the baseline “{study.baseline.title}” and the best row (paired 95 % '
        f'intervals, not corrected): {"; ".join(texts)}.'
      )
  return told


def _against_best(study: Study, rows: Sequence[Row], name: str, text: str) -> str:
  """'calibration error (lower is good) 0.070, best 0.014 of “A” (excludes 0)'."""
  measured = [row for row in rows if row.diagnostics(name)]
  told = f'{text} ({_sense(name).text} is good) {number(_mean(study.baseline, name))}'
  best = max(
    measured, key=lambda row: fmean(_goodness(row, name).values()), default=None
  )
  if best is None or measured == [study.baseline]:
    return told
  if best is study.baseline:
    return f'{told}, no row is better'
  gain = _gain(study, best, name)
  if gain is None:
    how = 'no seed in common with the baseline'
  elif gain.half_width is None:
    how = 'noise unknown'
  else:
    how = f'interval {"excludes" if gain.is_beyond_noise else "includes"} 0'
  return f'{told}, best {number(_mean(best, name))} of {quoted([best.title])} ({how})'


def _mean(row: Row, name: str) -> float | None:
  values = row.diagnostics(name).values()
  return fmean(values) if values else None


def _measured(study: Study) -> list[str]:
  """Names of the diagnostics that a finished run has a number of."""
  names: dict[str, None] = {}
  for _, run in study.runs:
    names |= dict.fromkeys((run['metrics'] or {}).get('diagnostics') or {})
  return [name for name in names if any(row.diagnostics(name) for row in study.rows)]


def table(study: Study) -> Table:
  """Mean of every diagnostic per row, marked where it differs from the baseline."""
  lines = []
  for name in _measured(study):
    cells = [name, _sense(name).text]
    for row in study.rows:
      found = statistics.estimate(row.diagnostics(name).values())
      gain = _gain(study, row, name)
      text = with_interval(found, 0 if name in _COUNTS else 3)
      if gain is not None and gain.is_beyond_noise:
        text += ' ✓' if gain.mean > 0 else ' ✗'
      cells.append(text)
    lines.append([*cells, _meaning(name)])
  titles = [row.title for row in study.rows]
  head = ['diagnostic', 'good is', *titles, 'meaning']
  return Table('ll' + 'r' * len(titles) + 'l', head, lines)


def _meaning(name: str) -> str:
  for measure in _PER_KIND:
    if name.startswith(f'{measure}_'):
      short = re.split('[:;]', _MEANINGS[measure])[0]
      return f'{short}; {name.removeprefix(f"{measure}_")} sides'
  return _MEANINGS.get(name, DASH)


def as_html(study: Study) -> str:
  """The table for the page; of a long one, the diagnostics that no sentence names are
  folded away."""
  whole = table(study)
  if not whole.rows:
    return paragraph('The runs have no diagnostics.')
  if len(whole.rows) <= _MAX_OPEN:
    return _colored(whole) + paragraph(LEGEND)
  named = {name for measures in _NAMED.values() for name in measures}
  shown, rest = (
    [line for line in whole.rows if (line[0] in named) == is_shown]
    for is_shown in (True, False)
  )
  title = f'The other diagnostics ({len(rest)})'
  folded = details(title, _colored(whole._replace(rows=rest)))
  return _colored(whole._replace(rows=shown)) + paragraph(LEGEND) + folded


def _colored(part: Table) -> str:
  text = part.as_html()
  for mark, kind in (('✓', 'good'), ('✗', 'bad')):
    text = text.replace(f' {mark}</td>', f' <span class="{kind}">{mark}</span></td>')
  return f'<div class="diagnostics">{text}</div>'
