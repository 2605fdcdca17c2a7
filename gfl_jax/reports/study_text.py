"""The sentences about a study, for its page, its Markdown and the README."""

import statistics as stdlib_statistics
from collections.abc import Mapping

from gfl_jax.reports import study_results
from gfl_jax.reports.study_results import Comparison, Order, Study
from gfl_jax.reports.study_tables import RERUN_SPREAD, signed

_RECIPE = 'gfl_r50_fpn_1x_coco'  # the base whose numbers the paper's are of
_SHOWN = ('better', 'worse')
_MAX_LISTED = 4  # rows of which nothing is shown; more are counted


def heading(study: Study) -> str:
  """'Table 1c: The exponent beta of QFL', or the title alone."""
  table, title = study.about['table'], study.about['title']
  return f'Table {table}: {title}' if table else title


def setting(study: Study) -> str:
  """What ran, in one line: base, what was changed in it, seeds."""
  about, seeds = study.about, study.seeds
  table = f'table {about["table"]} of the paper' if about['table'] else 'our own study'
  numbers = ', '.join(str(seed) for seed in seeds)
  of_seeds = f'{len(seeds)} seed{"s" if len(seeds) != 1 else ""} ({numbers})'
  own = '' if study.has_one_baseline else ' of rows that have none of their own'
  return (
    f'Study {about["study"]} · {table} · base {base(study)} · {of_seeds} · baseline '
    f'“{study.baseline.title}”{own}'
  )


def base(study: Study) -> str:
  """'demo_shapes (epochs=4)'."""
  changes = ', '.join(study.about['overrides'])
  return study.about['base'] + (f' ({changes})' if changes else '')


def scope(study: Study) -> str:
  """What our numbers and the paper's can be compared in."""
  if not study.has_paper:
    return f'The paper has no numbers for this study. Ours: {base(study)}.'
  if study.about['base'] == _RECIPE and not study.about['overrides']:
    return 'Paper: COCO, R-50, 90k iterations, one run per row. Ours: the same recipe.'
  return (
    f'Paper: COCO, R-50, 90k iterations, one run per row. Ours: {base(study)}. These '
    'are other images, another detector and another length of training: compare the '
    'differences and the order of the rows, never one AP with the other.'
  )


def finding(
  study: Study, comparisons: Mapping[str, Comparison], order: Order
) -> list[str]:
  """The outcome in plain words, a sentence or two per point."""
  return [
    *_baseline_findings(study, comparisons),
    *_order_findings(order),
    *missing_runs(study),
    *_several_environments(study),
  ]


def _baseline_findings(
  study: Study, comparisons: Mapping[str, Comparison]
) -> list[str]:
  if len(study.seeds) < 2:
    return [
      'One seed says nothing about noise: no row is called better or worse than '
      'another.'
    ]
  found = []
  for baseline in study.rows:
    against = {
      row.name: comparisons[row.name]
      for row in study.rows
      if row.name in comparisons and study.baseline_of(row) is baseline
    }
    if against:
      is_it = 'the baseline ' if baseline is study.baseline else ''
      found.append(f'Against {is_it}“{baseline.title}”: {_grouped(study, against)}.')
  tested = [c for c in comparisons.values() if c.corrected_p is not None]
  shown = {name: c for name, c in comparisons.items() if c.verdict in _SHOWN}
  remaining = {name: c for name, c in shown.items() if c.corrected_verdict in _SHOWN}
  if len(tested) > 1 and shown:
    count = f"Holm's correction for {len(tested)} comparisons"
    if not remaining:
      found.append(f'After {count} none of these differences remains.')
    elif len(remaining) < len(shown):
      found.append(f'After {count} remains {_grouped(study, remaining)}.')
    else:
      found.append(f'{count} changes none of this.')
  widths = [
    c.difference.half_width
    for c in comparisons.values()
    if c.difference is not None and c.difference.half_width
  ]
  if widths:
    found.append(
      f'A difference below about {stdlib_statistics.median(widths):.2f} points (median '
      'half width of the paired intervals) could not have been shown with these seeds.'
    )
  return found


def _grouped(study: Study, comparisons: Mapping[str, Comparison]) -> str:
  """'better: A, B; no difference shown (noise): C', by the verdicts."""
  groups: dict[str, list[str]] = {}
  for row in study.rows:
    if row.name in comparisons:
      groups.setdefault(comparisons[row.name].verdict, []).append(row.title)
  told = []
  for verdict in sorted(groups, key=lambda verdict: verdict not in _SHOWN):
    titles = groups[verdict]
    is_long = verdict not in _SHOWN and len(titles) > _MAX_LISTED
    named = f'{len(titles)} rows' if is_long else ', '.join(titles)
    told.append(f'{verdict}: {named}')
  return '; '.join(told)


def _order_findings(order: Order) -> list[str]:
  if not order.pairs:
    return []
  counts = {name: len(order.of(name)) for name in study_results.OUTCOMES}
  same = counts['confirmed'] + counts['agrees']
  other = counts['reversed'] + counts['contradicted']
  text = (
    f"The paper's numbers order {len(order.pairs)} pairs of these rows; ours order "
    f'{same} of them the same way ({counts["confirmed"]} beyond noise) and {other} the '
    f'other way ({counts["contradicted"]} beyond noise)'
  )
  if counts['equal']:
    text += f'; {counts["equal"]} are equal'
  tau = '' if order.tau is None else f" Kendall's tau-b is {signed(order.tau)}."
  return [f'{text}.{tau}']


def missing_runs(study: Study) -> list[str]:
  """One sentence if runs are not finished or have no AP."""
  counts = {
    status: sum(run['status'] == status for _, run in study.runs)
    for status in study_results.STATUSES
    if status != 'finished'
  }
  counts['finished without an AP'] = sum(
    len(row.finished) - len(row.points('AP')) for row in study.rows
  )
  told = [f'{count} {status}' for status, count in counts.items() if count]
  if not told:
    return []
  return [f'Of {len(study.runs)} runs: {", ".join(told)}. They count nowhere.']


def _several_environments(study: Study) -> list[str]:
  environments = study.about.get('environments') or []
  if len(environments) < 2:
    return []
  return [
    f'The runs were made in {len(environments)} different environments (devices, '
    'versions of the libraries, revision; listed below): what these change is in the '
    'differences between rows, too.'
  ]


def method(study: Study) -> list[str]:
  """How the numbers are made and what they leave out."""
  lines = [
    'AP in points. ± and [ ] are 95 % intervals of the mean over seeds (Student’s t). '
    'They cover what a seed changes, start values and order of the data; the '
    'evaluation images are the same in every run.',
    'Differences are paired: row minus its baseline with the same seed, over the seeds '
    'that both finished. “Better” and “worse”: the paired 95 % interval excludes 0.',
    'Several comparisons find something by chance more often than one does. The '
    'corrected reading uses Holm’s method over the rows of this study.',
  ]
  if study.has_paper:
    lines.append(
      'The paper gives no spread. Reruns of its recipe by others differ by about 0.1 '
      f'AP, so its differences up to {RERUN_SPREAD} (marked ~) may be noise too.'
    )
  return lines


def notes(study: Study) -> list[str]:
  """What the rows leave open, as told by who defined them."""
  return [f'{row.title}: {row.note}' for row in study.rows if row.note]


def commands(study: Study) -> list[str]:
  """The study's command, then that of every run; a shared run's only once."""
  found = [run['command'] for _, run in study.runs if run['command']]
  return [study.about['command'], *dict.fromkeys(found)]
