"""The diagnostics of a study: what they say of the rows, and their table.

See evaluation/diagnostics.py for how each is measured.
"""

import itertools
import re
from collections import ChainMap
from statistics import fmean

from gfl_jax.reports.diagnostic_sections import MEASURES, PER_KIND
from gfl_jax.reports.markup import DASH, Table, details, paragraph
from gfl_jax.reports.study import statistics
from gfl_jax.reports.study.comparison_tables import with_interval
from gfl_jax.reports.study.results import Row, Study

LEGEND = (
  '✓ and ✗: better or worse than the baseline of the row, by the column “good is”: the '
  'paired 95 % interval excludes 0. There is no correction: about one comparison in '
  'twenty gets a mark by chance.'
)
_MEASURES = ChainMap(*MEASURES.values())
_SIGNS = {'higher': 1, 'lower': -1, DASH: 0}
# The diagnostics that the sentences name.
_NAMED = {
  'Ranking': (
    *('negatives_above_a_positive', 'outranking_negatives'),
    *('score_iou_correlation', 'calibration_error'),
  ),
  'Sides': ('side_crps', 'side_nll', 'coverage_50', 'spread_correlation'),
}


def _kind_of_sides(name: str) -> tuple[str, str]:
  """'side_crps_sharp' as 'side_crps' and 'sharp'; '' for the kind of other names."""
  for measure in PER_KIND:
    if name.startswith(f'{measure}_'):
      return measure, name.removeprefix(f'{measure}_')
  return name, ''


def _good_is(name: str) -> str:
  """Which values are good: 'higher', 'lower', near a number as text, or DASH."""
  measure, _ = _kind_of_sides(name)
  return _MEASURES.get(measure, {}).get('good', DASH)


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
  lines = []
  for topic, names in _NAMED.items():
    texts = [
      f'{_MEASURES[name]["short"]} ({_good_is(name)} is good) '
      f'{_against_best(study, name)}'
      for name in names
      if name in measured
    ]
    if texts:
      lines.append(
        f'{topic}, baseline “{study.baseline.title}” and best row (✓: the paired 95 % '
        f'interval excludes 0, not corrected): {"; ".join(texts)}.'
      )
  return lines


def _against_best(study: Study, name: str) -> str:
  """'0.070 ± 0.007, best 0.014 ± 0.004 ✓ of “A”'."""
  rows = [row for row in study.rows if study.baseline_of(row) is study.baseline]
  rows = [row for row in rows if row.diagnostics(name)]
  goodness = lambda row: fmean(_goodness(row, name).values())
  best = max(rows, key=goodness, default=study.baseline)
  ours = _cell(study, study.baseline, name)
  if best is study.baseline:
    return f'{ours}, no row is better'
  return f'{ours}, best {_cell(study, best, name)} of “{best.title}”'


def _measured(study: Study) -> list[str]:
  """Names of the diagnostics that a finished run has a number of."""
  found = [(run['metrics'] or {}).get('diagnostics') or {} for _, run in study.runs]
  names = dict.fromkeys(itertools.chain(*found))
  return [name for name in names if any(row.diagnostics(name) for row in study.rows)]


def _cell(study: Study, row: Row, name: str) -> str:
  """'0.014 ± 0.004 ✓', marked where the row differs from its baseline, by seed."""
  found = statistics.estimate(row.diagnostics(name).values())
  ours, baseline = (_goodness(one, name) for one in (row, study.baseline_of(row)))
  gains = statistics.paired_differences(ours, baseline).values()
  gain, mark = statistics.estimate(gains), ''
  if gain is not None and gain.is_beyond_noise:
    mark = ' ✓' if gain.mean > 0 else ' ✗'
  return with_interval(found, 0 if name in MEASURES['counts'] else 3) + mark


def table(study: Study) -> Table:
  """Mean of every diagnostic per row, marked where it differs from the baseline."""
  lines = []
  for name in _measured(study):
    cells = [_cell(study, row, name) for row in study.rows]
    lines.append([name, _good_is(name), *cells, _meaning(name)])
  titles = [row.title for row in study.rows]
  head = ['diagnostic', 'good is', *titles, 'meaning']
  return Table('ll' + 'r' * len(titles) + 'l', head, lines)


def _meaning(name: str) -> str:
  measure, kind = _kind_of_sides(name)
  meaning = _MEASURES.get(measure, {}).get('meaning', DASH)
  return f'{re.split("[:;]", meaning)[0]}; {kind} sides' if kind else meaning


def as_html(study: Study) -> str:
  """The table for the page: diagnostics that no sentence names are folded away."""
  whole = table(study)
  if not whole.rows:
    return paragraph('The runs have no diagnostics.')
  named = {name for names in _NAMED.values() for name in names}
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
