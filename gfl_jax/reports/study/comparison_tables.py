"""The numbers and the tables of a study, for its page, its Markdown and the README.

APs and their differences are in points, 0 to 100.
"""

from collections.abc import Mapping, Sequence

from gfl_jax.evaluation.coco_metrics import METRICS
from gfl_jax.reports.markup import DASH, Table, duration, flatten, number
from gfl_jax.reports.study import results, statistics
from gfl_jax.reports.study.results import Comparison, Study
from gfl_jax.reports.study.statistics import Estimate

PAPER_COLUMNS = ("paper's AP", "paper's difference")
_REASONS = {
  'missing': 'not run yet',
  'running': 'still running, or its process was killed',
  'interrupted': 'interrupted; the command of the study continues it',
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
  text = f'{value:+.{digits}f}'.replace('-', '−')
  return text if text.strip('+−0.') else text[1:]


def counted(count: int, thing: str) -> str:
  """'1 pair', '3 pairs'."""
  return f'{count} {thing}{"" if count == 1 else "s"}'


def quoted(titles: Sequence[str]) -> str:
  """'“A, with B”, “C”'."""
  return ', '.join(f'“{title}”' for title in titles)


def difference_text(found: Estimate | None) -> str:
  """'+0.82 [−0.10, +1.74]'."""
  if found is None or found.half_width is None:
    return signed(found and found.mean)
  low, high = found.mean - found.half_width, found.mean + found.half_width
  return f'{signed(found.mean)} [{signed(low)}, {signed(high)}]'


def paper_difference(one: Comparison) -> str:
  """The paper's difference of two rows, marked with '~' where it may be noise."""
  gap = one.paper_difference
  return signed(gap, 1) if gap is None or one.is_clear else f'~ {signed(gap, 1)}'


def overview(study: Study, comparisons: Mapping[str, Comparison]) -> Table:
  """The main table: AP, difference and conclusion, beside the paper's numbers.

  Where rows have a baseline of their own, a column names it.
  """
  head = ['row', 'AP', 'std', 'runs', 'compared with', 'difference to baseline']
  head += ['conclusion', 'p (Holm)', *PAPER_COLUMNS]
  rows = []
  for row in study.rows:
    aps = row.points('AP').values()
    found = statistics.estimate(aps)
    ours = [with_interval(found), number(found and found.std, 2)]
    paper, gap = number(row.paper.get('AP'), 1), DASH
    compared = [DASH, DASH, 'baseline', DASH]
    if one := comparisons.get(row.name):
      p, gap = one.corrected_p, paper_difference(one)
      p_text = '< 0.001' if p is not None and p < 0.001 else number(p)
      difference = difference_text(one.difference)
      compared = [one.other.title, difference, one.conclusion, p_text]
    count = f'{len(aps)} of {len(row.runs)}'
    rows.append([row.title, *ours, count, *compared, paper, gap])
  left_out = ['compared with'] if study.has_one_baseline else []
  left_out += [] if study.has_paper else PAPER_COLUMNS
  return Table('lrrrlrlrrr', head, rows).without(*left_out)


def precision(study: Study) -> Table:
  """AP by IoU and size per row, and the paper's where it has them."""
  names = [name for name in METRICS if name.startswith('AP')]
  rows = []
  for row in study.rows:
    found = [statistics.estimate(row.points(name).values()) for name in names]
    rows.append([row.title, 'ours', *map(with_interval, found)])
    if row.paper:
      rows.append([row.title, 'paper', *(number(row.paper.get(n), 1) for n in names)])
  return Table('ll' + 'r' * len(names), ['row', 'of', *names], rows)


def pairs(found: Sequence[Comparison]) -> Table:
  """Pairs of rows that the paper orders, with both differences."""
  rows = []
  for pair in found:
    text = results.OUTCOMES[pair.outcome]
    if pair.corrected_p is None:
      text = text.replace('within noise', 'noise unknown (one seed)')
    if pair.is_uncorrected:
      text = text.replace('within noise', 'beyond noise only before correction')
    title = f'{pair.row.title} over {pair.other.title}'
    ours = difference_text(pair.difference)
    rows.append([title, paper_difference(pair), ours, text])
  head = ['the paper has', "paper's difference", 'our difference', 'ours shows']
  return Table('lrrl', head, rows)


def runs(study: Study) -> Table:
  """Every run, finished or not."""
  head, rows = ['row', 'seed', 'status', 'AP', 'time', 'folder'], []
  for row, run in study.runs:
    ap = number(row.points('AP').get(run['seed']), 2)
    time = DASH if run['seconds'] is None else duration(float(run['seconds']))
    folder = run['folder'] or DASH
    rows.append([row.title, str(run['seed']), run['status'], ap, time, folder])
  return Table('lrlrrl', head, rows)


def problems(study: Study) -> Table:
  """The runs that give no AP, and why."""
  rows = []
  for row, run in study.runs:
    if run['seed'] not in row.points('AP'):
      why = _REASONS.get(run['status'], run['error'] or 'it has no AP')
      rows.append([row.title, str(run['seed']), run['status'], ' '.join(why.split())])
  return Table('lrll', ['row', 'seed', 'status', 'why'], rows)


def environment(study: Study) -> Table:
  """Machine, versions, code and cost."""
  rows = []
  for name, field, as_text in (
    ('code (digest of the sources)', 'code', str),
    ('git revision', 'git', str),
    ('time of all runs', 'seconds', duration),
    ('of it compiling', 'compiling', duration),
  ):
    value = study.about.get(field)
    rows.append([name, as_text(value) if value else 'unknown'])
  # It is the env.json of one run; the study has a command and a revision of its own.
  machine = study.about.get('environment') or {}
  rows += flatten({k: v for k, v in machine.items() if k not in ('command', 'git')})
  environments = study.about.get('environments') or []
  for one in environments if len(environments) > 1 else []:
    text = ', '.join(map(' '.join, flatten(one)))
    rows.append([f'made {one["runs"]} of the runs', text])
  return Table('ll', ['', ''], rows)
