"""The diagnostics of a study: what they say of the rows, and their table.

See evaluation/diagnostics.py for how each is measured.
"""

import re
from statistics import fmean

from gfl_jax.evaluation.diagnostics import LEVELS
from gfl_jax.reports import diagnostic_sections
from gfl_jax.reports.markup import DASH, Table, details, paragraph
from gfl_jax.reports.study import statistics
from gfl_jax.reports.study.comparison_tables import with_interval
from gfl_jax.reports.study.results import Row, Study

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
  'positive_iou_std': 'standard deviation of that IoU',
  'positive_centerness_mean': 'centerness of their anchor points in it',
  'positive_centerness_std': 'standard deviation of that centerness',
  **{
    f'coverage_{level}': f'share of annotated sides in the central {level} % interval'
    for level in LEVELS
  },
}
_LOWER = ('negatives_above', 'outranking', 'calibration_error', 'side_', 'sides_at')
_SIGNS = {'higher': 1, 'lower': -1, DASH: 0}
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


def _good_is(name: str) -> str:
  """Which values are good: 'higher', 'lower', near a number as text, or DASH."""
  if name.startswith('coverage_'):
    return f'{int(name.removeprefix("coverage_")) / 100:g}'
  if name.startswith('spread_ratio'):
    return '1'
  if 'correlation' in name:
    return 'higher'
  return 'lower' if name.startswith(_LOWER) else DASH


def _goodness(row: Row, name: str) -> dict[int, float]:
  """By seed; higher is better, and all 0 if a diagnostic is neither good nor bad."""
  good, values = _good_is(name), row.diagnostics(name)
  if good in _SIGNS:
    return {seed: _SIGNS[good] * value for seed, value in values.items()}
  return {seed: -abs(value - float(good)) for seed, value in values.items()}


def findings(study: Study) -> list[str]:
  """A sentence each on ranking and on sides: the baseline's value and the best.

  About the study's baseline and the rows that are compared with it.
  """
  measured = set(_measured(study))
  if 'negatives_above_a_positive' in measured:  # older studies have only the other
    measured.discard('outranking_negatives')
  told = []
  for topic, measures in _NAMED.items():
    texts = [
      f'{text} ({_good_is(name)} is good) {_against_best(study, name)}'
      for name, text in measures.items()
      if name in measured
    ]
    if texts:
      told.append(
        f'{topic}, baseline “{study.baseline.title}” and best row (✓: the paired 95 % '
        f'interval excludes 0, not corrected): {"; ".join(texts)}.'
      )
  return told


def _against_best(study: Study, name: str) -> str:
  """'0.070 ± 0.007, best 0.014 ± 0.004 ✓ of “A”'."""
  rows = [row for row in study.rows if study.baseline_of(row) is study.baseline]
  goodness = {row.title: _goodness(row, name).values() for row in rows}
  means = {title: fmean(values) for title, values in goodness.items() if values}
  ours = _cell(study, study.baseline, name)
  if not means or (best := max(means, key=means.__getitem__)) == study.baseline.title:
    return f'{ours}, no row is better'
  row = next(row for row in rows if row.title == best)
  return f'{ours}, best {_cell(study, row, name)} of “{best}”'


def _measured(study: Study) -> list[str]:
  """Names of the diagnostics that a finished run has a number of."""
  names: dict[str, None] = {}
  for _, run in study.runs:
    names |= dict.fromkeys((run['metrics'] or {}).get('diagnostics') or {})
  return [name for name in names if any(row.diagnostics(name) for row in study.rows)]


def _cell(study: Study, row: Row, name: str) -> str:
  """'0.014 ± 0.004 ✓', marked where the row differs from its baseline, by seed."""
  found = statistics.estimate(row.diagnostics(name).values())
  ours, baseline = (_goodness(one, name) for one in (row, study.baseline_of(row)))
  gains = statistics.paired_differences(ours, baseline).values()
  gain, mark = statistics.estimate(gains), ''
  if gain is not None and gain.is_beyond_noise:
    mark = ' ✓' if gain.mean > 0 else ' ✗'
  return with_interval(found, 0 if name in _COUNTS else 3) + mark


def table(study: Study) -> Table:
  """Mean of every diagnostic per row, marked where it differs from the baseline."""
  lines = [
    [
      name,
      _good_is(name),
      *(_cell(study, row, name) for row in study.rows),
      _meaning(name),
    ]
    for name in _measured(study)
  ]
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
  """The table for the page: diagnostics that no sentence names are folded away."""
  whole = table(study)
  if not whole.rows:
    return paragraph('The runs have no diagnostics.')
  named = {name for measures in _NAMED.values() for name in measures}
  shown, rest = (
    whole._replace(rows=[row for row in whole.rows if (row[0] in named) == is_shown])
    for is_shown in (True, False)
  )
  folded = details(f'The other diagnostics ({len(rest.rows)})', _colored(rest))
  return _colored(shown) + paragraph(LEGEND) + folded


def _colored(part: Table) -> str:
  text = part.as_html()
  for mark, kind in (('✓', 'good'), ('✗', 'bad')):
    text = text.replace(f' {mark}</td>', f' <span class="{kind}">{mark}</span></td>')
  return f'<div class="diagnostics">{text}</div>'
