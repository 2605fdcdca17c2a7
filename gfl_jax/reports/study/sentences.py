"""The sentences about a study, for its page, its Markdown and the README."""

import re
import statistics as stdlib_statistics
from collections.abc import Mapping, Sequence

from gfl_jax.reports.study import diagnostic_tables, results, statistics
from gfl_jax.reports.study.comparison_tables import counted, quoted, signed
from gfl_jax.reports.study.results import (
  BETTER,
  RERUN_SPREAD,
  SETTLED,
  SUGGESTIVE,
  WORSE,
  Comparison,
  Order,
  Row,
  Study,
)

_RECIPE = 'gfl_r50_fpn_1x_coco'  # the base whose numbers the paper's are of
_TOLD = (
  BETTER,
  WORSE,
  *SUGGESTIVE.values(),
)  # the verdicts of which all rows are named
_MAX_LISTED = 4  # rows of which nothing is shown; more are counted
_ENOUGH_SEEDS = 3
_LEARNED = 5.0  # points of AP; below, a detector has found next to nothing


def heading(study: Study) -> str:
  """'Table 1c: The exponent beta of QFL', or the title alone."""
  table, title = study.about['table'], study.about['title']
  return f'Table {table}: {title}' if table else title


def setting(study: Study) -> str:
  """What ran, in one line: base, what was changed in it, seeds."""
  about, seeds = study.about, study.seeds
  table = f'table {about["table"]} of the paper' if about['table'] else 'our own study'
  numbers = ', '.join(str(seed) for seed in seeds)
  of_seeds = f'{counted(len(seeds), "seed")} ({numbers})'
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
    *_hardly_learned(study),
    *_baseline_findings(study, comparisons),
    *_order_findings(order),
    *diagnostic_tables.findings(study),
    *missing_runs(study),
    *_several_environments(study),
  ]


def in_short(study: Study, order: Order) -> list[str]:
  """What must stand beside the table of a study where there is room for no more."""
  return [*_hardly_learned(study), *_order_findings(order), *missing_runs(study)]


def _hardly_learned(study: Study) -> list[str]:
  found = [statistics.estimate(list(row.points('AP').values())) for row in study.rows]
  best = max((one.mean for one in found if one is not None), default=_LEARNED)
  if best >= _LEARNED:
    return []
  return [
    f"The best row's mean AP is {best:.2f} points: these runs have hardly learned; "
    'their order says nothing.'
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
      grouped = _grouped(study, against, baseline)
      found.append(f'Against {is_it}“{baseline.title}”: {grouped}.')
  tested = [c for c in comparisons.values() if c.corrected_p is not None]
  if len(tested) > 1:
    found.append(f"This is read after Holm's correction for {len(tested)} comparisons.")
  return [*found, *_few_seeds(study, comparisons), *_widths(comparisons)]


def _few_seeds(study: Study, comparisons: Mapping[str, Comparison]) -> list[str]:
  counted = [
    (row.title, comparisons[row.name].difference)
    for row in study.rows
    if row.name in comparisons
  ]
  compared = [(title, found.count) for title, found in counted if found is not None]
  few = [title for title, count in compared if count < _ENOUGH_SEEDS]
  if not few:
    return []
  which = 'every row' if len(few) == len(compared) else quoted(few)
  return [
    f'Compared over fewer than {_ENOUGH_SEEDS} seeds: {which}. So few hardly tell a '
    'difference from noise.'
  ]


def _widths(comparisons: Mapping[str, Comparison]) -> list[str]:
  widths = [
    c.difference.half_width
    for c in comparisons.values()
    if c.difference is not None and c.difference.half_width
  ]
  if not widths:
    return []
  if len(widths) == 1:
    sizes = f'half width of the paired 95 % interval is {widths[0]:.2f} points'
  else:
    sizes = (
      f'half widths of the paired 95 % intervals run from {min(widths):.2f} to '
      f'{max(widths):.2f} points (median {stdlib_statistics.median(widths):.2f})'
    )
  return [f'The {sizes}: a true difference of that size is easily missed.']


def _grouped(study: Study, comparisons: Mapping[str, Comparison], baseline: Row) -> str:
  """'better: “A”; “B”. No difference shown (noise): “C”', by the verdicts."""
  groups: dict[str, list[str]] = {}
  for row in study.rows:
    if row.name in comparisons:
      groups.setdefault(comparisons[row.name].verdict, []).append(row.title)
  titles = [title for group in groups.values() for title in group]
  prefix = _common_prefix([baseline.title, *titles])
  told = []
  for verdict in sorted(groups, key=_rank):
    names = [title.removeprefix(prefix) for title in groups[verdict]]
    is_long = verdict not in _TOLD and len(names) > _MAX_LISTED
    told.append(f'{verdict}: {f"{len(names)} rows" if is_long else quoted(names)}')
  return '. '.join([told[0], *(text[0].upper() + text[1:] for text in told[1:])])


def _rank(verdict: str) -> int:
  return _TOLD.index(verdict) if verdict in _TOLD else len(_TOLD)


def _common_prefix(titles: Sequence[str]) -> str:
  """'ATSS, ' if all titles begin with it and go on; else ''."""
  first, comma, _ = titles[0].partition(', ')
  prefix = first + comma
  is_common = comma and all(title.startswith(prefix) for title in titles)
  return prefix if is_common and prefix not in titles else ''


def _order_findings(order: Order) -> list[str]:
  if not order.pairs:
    return []
  total, same = len(order.pairs), order.of('confirmed', 'agrees')
  agree, disagree = (len(order.of(outcome)) for outcome in SETTLED)
  head = f'The paper orders {counted(total, "pair")} of these rows. '
  if not agree + disagree:
    text = f'Ours {"settle none of them" if total > 1 else "do not settle it"}'
  else:
    text = (
      f'Ours settle {agree + disagree}: {agree} as the paper, {disagree} against it'
    )
  return [
    f"{head}{text} (after Holm's correction); the means alone have {len(same)} of "
    f"{total} in the paper's order."
  ]


def order_notes(order: Order) -> list[str]:
  """How the pairs below it are read, and what their order as a whole is."""
  tau = signed(order.tau) if order.tau is not None else 'not defined'
  notes = [
    f"Kendall's tau-b over the {len(order.rows)} rows with both numbers: {tau} (1: the "
    'same order; 0: no relation; −1: the opposite one). It counts every pair alike, '
    "the paper's smallest differences and what is noise in ours: it is no measure of "
    'what was reproduced.'
  ]
  clear = [pair for pair in order.pairs if pair.is_clear]
  if order.pairs and not clear:
    notes.append(
      f'Every difference of the paper is at most {RERUN_SPREAD} (marked ~): it may '
      'have no order to reproduce.'
    )
  elif len(clear) < len(order.pairs):
    same = sum(pair.outcome in ('confirmed', 'agrees') for pair in clear)
    notes.append(
      f'Without the pairs marked ~, whose difference in the paper is at most '
      f'{RERUN_SPREAD}: our means have {same} of {len(clear)} in the paper’s order.'
    )
  suggestive = sum(pair.is_suggestive for pair in order.pairs)
  if len(order.pairs) > 1:
    notes.append(
      f"“Beyond noise” is after Holm's correction over all {len(order.pairs)} pairs."
    )
  if suggestive:
    notes.append(
      f'Suggestive, by the 95 % interval of the pair alone: {suggestive} of '
      f'{len(order.pairs)}. By chance it would be about {0.05 * len(order.pairs):.1f}.'
    )
  if order.num_unknown:
    have = 'has' if order.num_unknown == 1 else 'have'
    notes.append(
      f'{counted(order.num_unknown, "more pair")} that the paper orders {have} no seed '
      'that both rows finished.'
    )
  return notes


def missing_runs(study: Study) -> list[str]:
  """One sentence if runs are not finished or have no AP."""
  counts = {
    status: sum(run['status'] == status for _, run in study.runs)
    for status in results.STATUSES
    if status != 'finished'
  }
  counts['finished without an AP'] = sum(
    len(row.finished) - len(row.points('AP')) for row in study.rows
  )
  told = [f'{count} {status}' for status, count in counts.items() if count]
  if not told:
    return []
  return [
    f'Of {counted(len(study.runs), "run")}: {", ".join(told)}. They count nowhere.'
  ]


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
    'that both finished. “Better” and “worse”: the paired difference is beyond noise '
    'after Holm’s correction over the rows of this study, for several comparisons find '
    'something by chance more often than one does. “Suggestive”: only the row’s own '
    '95 % interval excludes 0.',
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


def differences(study: Study) -> list[str]:
  """What the whole study does otherwise than the paper; nothing if it says nothing."""
  text = study.about.get('notes') or ''  # older ones lack it
  head = 'Not as in the paper' if study.about['table'] else 'To be kept in mind'
  return [f'{head}: {text}'] if text else []


def commands(study: Study) -> list[str]:
  """The study's command, then that of every run; a shared run's only once."""
  found = [run['command'] for _, run in study.runs if run['command']]
  return [study.about['command'], *dict.fromkeys(found)]


def command_patterns(study: Study) -> list[str]:
  """The study's command, then one a row, with {seed} and {digest} where runs differ.

  A row whose runs differ in more than that has all its commands.
  """
  found = []
  for row in study.rows:
    own = [run['command'] for run in row.runs if run['command']]
    patterns = {_pattern(command) for command in own}
    found += patterns if len(own) > 1 and len(patterns) == 1 else own
  return [study.about['command'], *dict.fromkeys(found)]


def _pattern(command: str) -> str:
  """A seed of the base itself is not in its command, but may be given all the same."""
  command = re.sub(r'-seed\d+-[0-9a-f]{8}\b', '-seed{seed}-{digest}', command)
  return re.sub(r' --config\.seed=\d+\b', '', command) + ' --config.seed={seed}'
