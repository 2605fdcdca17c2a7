"""The sentences about a study, for its page, its Markdown and the README."""

import re
from collections.abc import Mapping
from statistics import fmean, median

from gfl_jax.reports.study import diagnostic_tables, results
from gfl_jax.reports.study.comparison_tables import counted, quoted, signed
from gfl_jax.reports.study.results import Comparison, Order, Study

_RECIPE = 'gfl_r50_fpn_1x_coco'  # the base that is the recipe of the paper's numbers
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
  own = '' if study.has_one_baseline else ' unless a row has its own'
  return (
    f'Study {about["study"]} · {table} · base {base(study)} · '
    f'{counted(len(seeds), "seed")} ({", ".join(map(str, seeds))}) · baseline '
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
  paper = 'Paper: COCO, ResNet-50, 90k iterations, one run per row. Ours:'
  if study.about['base'] == _RECIPE and not study.about['overrides']:
    return f'{paper} the same recipe.'
  return (
    f'{paper} {base(study)}. Images, detector and length of training differ: compare '
    'the differences between rows and their order, not the APs.'
  )


def finding(
  study: Study, comparisons: Mapping[str, Comparison], order: Order
) -> list[str]:
  """The outcome in plain words, a sentence or two per point."""
  text = study.about.get('notes')  # missing in older files
  head = 'Not as in the paper' if study.about['table'] else 'Note'
  environments = study.about.get('environments') or []
  texts = [
    *_hardly_learned(study),
    *_baseline_findings(study, comparisons),
    *_order_findings(order),
    *diagnostic_tables.findings(study),
    *_missing_runs(study),
  ]
  if len(environments) > 1:
    texts.append(
      f'The runs were made in {len(environments)} different environments (devices, '
      'library versions, git revision; listed below). This adds to the differences '
      'between rows.'
    )
  return [*texts, *([f'{head}: {text}'] if text else []), scope(study)]


def in_short(study: Study, order: Order) -> list[str]:
  """The findings that a summary shows below the table of a study."""
  return [*_hardly_learned(study), *_order_findings(order), *_missing_runs(study)]


def _hardly_learned(study: Study) -> list[str]:
  aps = [fmean(aps.values()) for row in study.rows if (aps := row.points('AP'))]
  if not aps or max(aps) >= _LEARNED:
    return []
  return [
    f'The best mean AP of a row is {max(aps):.2f} points: these detectors have hardly '
    'learned, and their order says nothing.'
  ]


def _baseline_findings(
  study: Study, comparisons: Mapping[str, Comparison]
) -> list[str]:
  if len(study.seeds) < 2:
    return ['With one seed the noise is unknown: no row is called better or worse.']
  groups: dict[str, dict[str, list[str]]] = {}  # titles by baseline and conclusion
  for one in comparisons.values():
    is_it = 'the baseline ' if one.other is study.baseline else ''
    of_baseline = groups.setdefault(f'{is_it}“{one.other.title}”', {})
    of_baseline.setdefault(one.conclusion, []).append(one.row.title)
  shown = {*results.UNCORRECTED, *results.UNCORRECTED.values()}  # these come first
  found = []
  for baseline, conclusions in groups.items():
    ordered = sorted(conclusions.items(), key=lambda entry: entry[0] not in shown)
    parts = (f'{conclusion}: {quoted(titles)}' for conclusion, titles in ordered)
    found.append(f'Against {baseline} – {"; ".join(parts)}.')
  return [*found, *_precautions(comparisons)]


def _precautions(comparisons: Mapping[str, Comparison]) -> list[str]:
  """How many comparisons were corrected for, too few seeds, wide intervals."""
  texts = []
  tested = [one for one in comparisons.values() if one.corrected_p is not None]
  if len(tested) > 1:
    texts.append(f"Holm's correction is for {len(tested)} comparisons.")
  compared = [
    (one.row.title, one.difference) for one in comparisons.values() if one.difference
  ]
  few = [title for title, found in compared if found.count < _ENOUGH_SEEDS]
  if few:
    rows = 'every row' if len(few) == len(compared) else quoted(few)
    texts.append(
      f'Compared over fewer than {_ENOUGH_SEEDS} seeds: {rows}. So few can hardly tell '
      'a difference from noise.'
    )
  widths = [found.half_width for _, found in compared if found.half_width]
  if widths:
    texts.append(
      f'The paired 95 % intervals are ± {min(widths):.2f} to ± {max(widths):.2f} '
      f'points (median {median(widths):.2f}). Smaller differences are easily missed.'
    )
  return texts


def _order_findings(order: Order) -> list[str]:
  if not order.pairs:
    return []
  total, same = len(order.pairs), len(order.of('confirmed', 'agrees'))
  confirmed, contradicted = (len(order.of(outcome)) for outcome in results.SETTLED)
  return [
    f"The paper orders {counted(total, 'pair')} of these rows. After Holm's "
    f'correction, our runs confirm {confirmed} and contradict {contradicted}; our '
    f"means alone have {same} of {total} in the paper's order."
  ]


def order_notes(order: Order) -> list[str]:
  """How to read the table of pairs, and how well their order as a whole agrees."""
  total, clear = len(order.pairs), [pair for pair in order.pairs if pair.is_clear]
  notes = [
    f"Kendall's tau-b over the {len(order.rows)} rows with both APs: "
    f'{signed(order.tau)} (1: the same order; 0: no relation; −1: the opposite order). '
    'It also counts differences that may be noise, in the paper or in ours, so it does '
    'not measure what was reproduced.'
  ]
  if len(clear) < total:
    same = sum(pair.outcome in ('confirmed', 'agrees') for pair in clear)
    others = f' Of the other {len(clear)}, our means have {same} in its order.'
    notes.append(
      f"In {total - len(clear)} of {counted(total, 'pair')} (marked ~) the paper's "
      f'difference is at most {results.RERUN_SPREAD} points and may be noise.'
      f'{others if clear else ""}'
    )
  if total:
    notes.append(
      f"“Beyond noise” is after Holm's correction for {counted(total, 'pair')}. Only "
      f'before correction: {sum(pair.is_uncorrected for pair in order.pairs)}; chance '
      f'alone gives about {0.05 * total:.1f}.'
    )
  if order.num_unknown:
    notes.append(
      f'Not compared: {counted(order.num_unknown, "pair")} of the paper without a seed '
      'that both rows finished.'
    )
  return notes


def _missing_runs(study: Study) -> list[str]:
  """One sentence if runs are not finished or have no AP."""
  statuses = [run['status'] for _, run in study.runs]
  counts = {one: statuses.count(one) for one in results.STATUSES if one != 'finished'}
  counts['finished without an AP'] = sum(
    len(row.finished) - len(row.points('AP')) for row in study.rows
  )
  texts = [f'{count} {status}' for status, count in counts.items() if count]
  if not texts:
    return []
  return [f'Of {counted(len(statuses), "run")}: {", ".join(texts)}. They are left out.']


def method(study: Study) -> list[str]:
  """How the numbers are made and what they leave out."""
  lines = [
    'AP is in points, 0 to 100. ± and [ ] are 95 % intervals of the mean over seeds '
    "(Student's t). They cover what a seed changes: start values and order of the "
    'data. The evaluation images are the same in every run.',
    'Differences are paired: row minus baseline with the same seed, over the seeds '
    'that both finished. “Better” and “worse”: the difference is beyond noise after '
    "Holm's correction over the rows of this study, because several comparisons find "
    'something by chance more often than one. “Only before correction”: the '
    "row's own 95 % interval excludes 0.",
  ]
  if study.has_paper:
    lines.append(
      'The paper gives no spread. Reruns of its recipe by others differ by about 0.1 '
      f'AP, so differences of up to {results.RERUN_SPREAD} (marked ~) may be noise too.'
    )
  return lines


def command_patterns(study: Study) -> list[str]:
  """The study's command, then one per row, with {seed} and {digest} where runs differ.

  If the runs of a row differ in more than that, all its commands are listed.
  """
  found = []
  for row in study.rows:
    own = [run['command'] for run in row.runs if run['command']]
    patterns = {_pattern(command) for command in own}
    found += patterns if len(own) > 1 and len(patterns) == 1 else own
  return [study.about['command'], *dict.fromkeys(found)]


def _pattern(command: str) -> str:
  """A command with {seed}, also where it leaves out the seed that its base has."""
  command = re.sub(r'-seed\d+-[0-9a-f]{8}\b', '-seed{seed}-{digest}', command)
  return re.sub(r' --config\.seed=\d+\b', '', command) + ' --config.seed={seed}'
