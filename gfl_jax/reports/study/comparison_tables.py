"""The numbers and the tables of a study, for its page, its Markdown and the README.

APs and their differences are in points, 0 to 100.
"""

from collections.abc import Mapping, Sequence

from gfl_jax.evaluation.coco_metrics import METRICS
from gfl_jax.reports.study import results, statistics
from gfl_jax.reports.study.results import Comparison, Pair, Study
from gfl_jax.reports.study.statistics import Estimate
from gfl_jax.reports.tables import DASH, Table, duration, flatten, number

_REASONS = {
  'missing': 'not run yet',
  'running': 'it is running, or its process was killed',
  'interrupted': 'it was stopped; the command of the study goes on with it',
}


def with_interval(found: Estimate | None, digits: int = 2) -> str:
  """'64.08 ± 0.61'; the mean alone where one value gives no interval."""
  if found is None or found.half_width is None:
    return number(found and found.mean, digits)
  return f'{found.mean:.{digits}f} ± {found.half_width:.{digits}f}'


def signed(value: float | None, digits: int = 2) -> str:
  """With its sign, a true minus; what rounds to 0 has none."""
  if value is None:
    return DASH
  text = f'{abs(value):.{digits}f}'
  if not float(text):
    return text
  return f'{"+" if value > 0 else "−"}{text}'


def counted(count: int, thing: str) -> str:
  """'1 pair', '3 pairs'."""
  return f'{count} {thing}{"" if count == 1 else "s"}'


def quoted(titles: Sequence[str]) -> str:
  """'“A, with B”; “C”': titles hold commas of their own."""
  return '; '.join(f'“{title}”' for title in titles)


def p_value(value: float | None) -> str:
  return '< 0.001' if value is not None and value < 0.001 else number(value, 3)


def difference_text(found: Estimate | None) -> str:
  """'+0.82 [−0.10, +1.74]'."""
  if found is None or found.half_width is None:
    return signed(found and found.mean)
  low, high = found.mean - found.half_width, found.mean + found.half_width
  return f'{signed(found.mean)} [{signed(low)}, {signed(high)}]'


def overview(study: Study, comparisons: Mapping[str, Comparison]) -> Table:
  """The main table: AP, difference and its reading, beside the paper's numbers.

  Where rows have a baseline of their own, a column names it.
  """
  head = [
    'row',
    'AP',
    'std',
    'runs',
    'compared with',
    'difference to baseline',
    'reading',
  ]
  head += ['p (Holm)', "paper's AP", "paper's difference"]
  rows = []
  for row in study.rows:
    aps = list(row.points('AP').values())
    found = statistics.estimate(aps)
    against = comparisons.get(row.name)
    cells = [row.title, with_interval(found), number(found and found.std, 2)]
    cells.append(f'{len(aps)} of {len(row.runs)}')
    cells.append(DASH if against is None else study.baseline_of(row).title)
    cells += _readings(against)
    cells.append(number(row.paper.get('AP'), 1))
    cells.append(paper_difference(against and against.paper_difference))
    rows.append(cells)
  left_out = {'compared with'} if study.has_one_baseline else set()
  left_out |= set() if study.has_paper else set(head[-2:])
  table = Table('lrrrlrlrrr', head, rows)
  return table.only([name for name in head if name not in left_out])


def _readings(against: Comparison | None) -> list[str]:
  if against is None:
    return [DASH, 'baseline', DASH]
  difference = difference_text(against.difference)
  return [difference, against.verdict, p_value(against.corrected_p)]


def paper_difference(value: float | None) -> str:
  """Marked where the paper's own noise may explain it."""
  text = signed(value, 1)
  is_small = value is not None and abs(value) <= results.RERUN_SPREAD + 1e-9
  return f'~ {text}' if is_small else text


def compact(study: Study, comparisons: Mapping[str, Comparison]) -> Table:
  """`overview` without what a README has no room for."""
  table = overview(study, comparisons)
  left_out = {'std', 'p (Holm)'}
  return table.only([name for name in table.head if name not in left_out])


def precision(study: Study) -> Table:
  """AP by IoU and size per row, and the paper's where it has them."""
  names = [name for name in METRICS if name.startswith('AP')]
  rows = []
  for row in study.rows:
    found = [statistics.estimate(list(row.points(name).values())) for name in names]
    rows.append([row.title, 'ours', *map(with_interval, found)])
    if row.paper:
      rows.append([row.title, 'paper', *(number(row.paper.get(n), 1) for n in names)])
  return Table('ll' + 'r' * len(names), ['row', 'of', *names], rows)


def pairs(found: Sequence[Pair]) -> Table:
  """Pairs of rows that the paper orders, with both differences."""
  rows = [
    [
      f'{pair.higher.title} over {pair.lower.title}',
      paper_difference(pair.paper_difference),
      difference_text(pair.difference),
      pair_reading(pair),
    ]
    for pair in found
  ]
  head = ['the paper has', "paper's difference", 'our difference', 'ours shows']
  return Table('lrrl', head, rows)


def pair_reading(pair: Pair) -> str:
  text = results.OUTCOMES[pair.outcome]
  if pair.difference.half_width is None:
    return text.replace('within noise', 'noise not known (one seed)')
  if pair.is_suggestive:
    return text.replace('within noise', 'suggestive (not after correction)')
  return text


def runs(study: Study) -> Table:
  """Every run, whatever became of it."""
  rows = [
    [
      row.title,
      str(run['seed']),
      run['status'],
      number(row.points('AP').get(run['seed']), 2),
      DASH if run['seconds'] is None else duration(float(run['seconds'])),
      run['folder'] or DASH,
    ]
    for row, run in study.runs
  ]
  head = ['row', 'seed', 'status', 'AP', 'time', 'folder']
  return Table('lrlrrl', head, rows)


def problems(study: Study) -> Table:
  """The runs that give no AP, and why."""
  rows = [
    [row.title, str(run['seed']), run['status'], _reason(run)]
    for row, run in study.runs
    if run['seed'] not in row.points('AP')
  ]
  return Table('lrll', ['row', 'seed', 'status', 'why'], rows)


def _reason(run: Mapping) -> str:
  if run['status'] in _REASONS:
    return _REASONS[run['status']]
  return ' '.join((run['error'] or 'it has no AP').split())


def environment(study: Study) -> Table:
  """Machine, versions, code and cost."""
  about = study.about
  machine = dict(about.get('environment') or {})
  # Of the one run whose env.json it is; the study has its own.
  for field in ('command', 'git'):
    machine.pop(field, None)
  seconds, compiling = about.get('seconds'), about.get('compiling')
  rows = [
    ['code (digest of the sources)', str(about.get('code') or 'unknown')],
    ['git revision', str(about.get('git') or 'unknown')],
    ['time of all runs', duration(float(seconds)) if seconds else 'unknown'],
    ['of it compiling', duration(float(compiling)) if compiling else 'unknown'],
    *flatten(machine),
  ]
  environments = about.get('environments') or []
  if len(environments) > 1:
    rows += [
      [f'made {one["runs"]} of the runs', ', '.join(map(' '.join, flatten(one)))]
      for one in environments
    ]
  return Table('ll', ['', ''], rows)
