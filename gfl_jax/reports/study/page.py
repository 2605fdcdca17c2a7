"""The report of a study, as a page, as Markdown and as CSV, from its study.json."""

import os
from collections.abc import Mapping
from pathlib import Path

from gfl_jax import files
from gfl_jax.errors import MissingFileError
from gfl_jax.reports import html_page
from gfl_jax.reports.html_page import listing, paragraph, section
from gfl_jax.reports.study import (
  comparison_tables,
  diagnostic_tables,
  figures,
  sentences,
  statistics,
  text_files,
)
from gfl_jax.reports.study.figures import Mark, Panel
from gfl_jax.reports.study.results import (
  BETTER,
  OUTCOMES,
  SETTLED,
  WORSE,
  Comparison,
  Order,
  Study,
  compare_order,
  compare_rows,
  load_study,
)
from gfl_jax.reports.tables import DASH, duration, escape_markdown, number


def write_study_report(folder: str | os.PathLike) -> Path:
  """Writes report.html, results.md and results.csv beside a study.json.

  The page holds all it shows and loads nothing. A study that is still running can be
  reported: runs that failed or are missing are shown as such.

  Args:
    folder: of the study; reads study.json, and no other file.

  Returns:
    The path of report.html.

  Raises:
    FileNotFoundError: there is no study.json.
    ValueError: it is damaged (see `study_results.load_study`).
  """
  study = load_study(folder)
  comparisons, order = compare_rows(study), compare_order(study)
  folder = Path(folder)
  files.atomic_write(folder / 'results.csv', text_files.csv_text(study))
  text = text_files.markdown(study, comparisons, order)
  files.atomic_write(folder / 'results.md', text)
  path = folder / 'report.html'
  files.atomic_write(path, _page(study, comparisons, order))
  return path


def summary_table(root: str | os.PathLike) -> str:
  """All studies below a folder as Markdown: a table each, and its order in short.

  Studies without a finished run are left out. Links to the results of each are relative
  to the current folder.

  Raises:
    FileNotFoundError: no study.json lies below root, or none with a finished run.
    ValueError: one of them is damaged.
  """
  root = Path(root).resolve()
  folders = sorted(path.parent for path in root.glob('**/study.json'))
  if not folders:
    raise MissingFileError(f'no study.json below {root}: run scripts/ablate.py first')
  studies = {folder: load_study(folder) for folder in folders}
  studies = {
    folder: s for folder, s in studies.items() if any(r.finished for r in s.rows)
  }
  if not studies:
    raise MissingFileError(f'no study below {root} has a finished run yet')
  scopes = [sentences.scope(study) for study in studies.values() if study.has_paper]
  parts = [f'{escape_markdown(text)}\n' for text in dict.fromkeys(scopes)]
  for folder, study in studies.items():
    comparisons, order = compare_rows(study), compare_order(study)
    link = Path(os.path.relpath(folder / 'results.md')).as_posix()
    lines = sentences.in_short(study, order)
    if not study.has_paper:
      lines = [sentences.scope(study), *lines]
    parts.append(
      f'**[{escape_markdown(sentences.heading(study))}](<{link}>)**\n\n'
      f'{escape_markdown(sentences.setting(study))}\n\n'
      f'{comparison_tables.compact(study, comparisons).as_markdown()}\n'
      f'{escape_markdown(" ".join(lines))}\n'
    )
  return '\n'.join(parts)


def _page(study: Study, comparisons: Mapping[str, Comparison], order: Order) -> str:
  has_order = bool(order.pairs or order.num_unknown)
  body = [
    _headline(study, order),
    _finding(study, comparisons, order),
    _problems(study),
    section(
      'Average precision',
      figures.strips(_titles(study), _precision_panels(study)),
      paragraph(
        'Small dots: one run each. Large dot and bar: mean and 95 % interval; an arrow '
        f'is an end beyond the scale.{_scales(study)}'
      ),
    ),
    section(
      'Difference to the baseline',
      _forest(study, comparisons),
      paragraph(
        'Green and red: better and worse after Holm’s correction; grey: not shown.'
        f'{_scales(study)}'
      ),
      _readings(study, comparisons),
      *map(paragraph, sentences.method(study)),
    ),
    section("Order of the rows, ours and the paper's", _order(order))
    if has_order
    else '',
    section('AP by IoU and size', comparison_tables.precision(study).as_html()),
    section('Diagnostics', diagnostic_tables.as_html(study)),
    section('Runs', comparison_tables.runs(study).as_html(), _commands(study)),
    section(
      'Machine, versions and cost', comparison_tables.environment(study).as_html()
    ),
  ]
  title = sentences.heading(study)
  style = figures.STYLE + diagnostic_tables.STYLE
  return html_page.page(title, ''.join(body), style=style)


def _headline(study: Study, order: Order) -> str:
  finished = sum(len(row.finished) for row in study.rows)
  seconds = study.about.get('seconds')
  tiles = {'runs finished': f'{finished} of {len(study.runs)}'}
  tiles['rows'] = str(len(study.rows))
  tiles['seeds'] = str(len(study.seeds))
  if order.pairs:
    agree, disagree = (len(order.of(outcome)) for outcome in SETTLED)
    label = f"the paper's pairs settled ({agree} agree, {disagree} disagree)"
    tiles[label] = f'{agree + disagree} of {len(order.pairs)}'
  tiles['time of all runs'] = duration(float(seconds)) if seconds else DASH
  return html_page.header(
    sentences.heading(study),
    paragraph(sentences.setting(study)),
    paragraph(study.about['question'], 'question'),
    html_page.tiles(tiles),
  )


def _finding(study: Study, comparisons: Mapping, order: Order) -> str:
  found = sentences.finding(study, comparisons, order)
  lines = ''.join(map(paragraph, [*found, *sentences.differences(study)]))
  scope = paragraph(sentences.scope(study), 'scope')
  return f'<section class="finding"><h2>What came out</h2>{lines}{scope}</section>\n'


def _problems(study: Study) -> str:
  table = comparison_tables.problems(study)
  if not table.rows:
    return ''
  return section('Runs that give no AP', table.as_html())


def _titles(study: Study) -> list[tuple[str, str]]:
  """Of each row, with its note, and the word 'baseline' where it is that."""
  baselines = _baselines(study)
  told = [['baseline'] if row.name in baselines else [] for row in study.rows]
  return [
    (row.title, '; '.join(word + ([row.note] if row.note else [])))
    for row, word in zip(study.rows, told, strict=True)
  ]


def _baselines(study: Study) -> set[str]:
  return {study.baseline_of(row).name for row in study.rows}


def _precision_panels(study: Study) -> list[Panel]:
  ours, paper = [], []
  for row in study.rows:
    color = 'baseline' if row.name in _baselines(study) else 'plain'
    aps = row.points('AP')
    found = statistics.estimate(list(aps.values()))
    mark = Mark(
      list(aps.items()),
      found and found.mean,
      found and found.half_width,
      color,
      comparison_tables.with_interval(found),
    )
    ours.append(mark)
    ap = row.paper.get('AP')
    paper.append(Mark([], ap, None, 'noise', number(ap, 1)))
  panels = [Panel(f'Ours: {sentences.base(study)}', 'AP', 45, ours)]
  if study.has_paper:
    panels.append(Panel('Paper: COCO, R-50, 90k', 'AP', 16, paper))
  return panels


def _scales(study: Study) -> str:
  if not study.has_paper:
    return ''
  return (
    " The paper's strip has a scale of its own: places and distances on it are not "
    'those of ours.'
  )


def _forest(study: Study, comparisons: Mapping[str, Comparison]) -> str:
  """Paired differences, seed by seed, with the paper's on its own scale beside it."""
  titles, ours, paper = [], [], []
  for row in study.rows:
    if row.name not in comparisons:
      continue
    against, aps = comparisons[row.name], row.points('AP')
    other = study.baseline_of(row)
    baseline = other.points('AP')
    seeds = [(s, aps[s] - baseline[s]) for s in sorted(aps.keys() & baseline.keys())]
    verdict = against.verdict
    color = verdict if verdict in (BETTER, WORSE) else 'noise'
    found = against.difference
    mean, half_width = (found.mean, found.half_width) if found else (None, None)
    text = comparison_tables.difference_text(found)
    ours.append(Mark(seeds, mean, half_width, color, text))
    value = against.paper_difference
    text = comparison_tables.paper_difference(value)
    paper.append(Mark([], value, None, 'noise', text))
    named = '' if other is study.baseline else f'; against {other.title}'
    titles.append((row.title, verdict + named))
  if not titles:
    return paragraph('The study has no row besides its baseline.')
  panels = [Panel('Ours: AP minus baseline, same seed', 'points', 40, ours, True)]
  if any(mark.mean is not None for mark in paper):
    panels.append(Panel("Paper's difference", 'points', 16, paper, True))
  return figures.strips(titles, panels)


def _readings(study: Study, comparisons: Mapping[str, Comparison]) -> str:
  """The main table without what the figures beside it tell."""
  table = comparison_tables.overview(study, comparisons)
  return table.only([name for name in table.head if 'paper' not in name]).as_html()


def _order(order: Order) -> str:
  parts = list(map(paragraph, sentences.order_notes(order)))
  for outcome, words in OUTCOMES.items():
    found = order.of(outcome)
    if found:
      text = f'Ours {words}: {len(found)}'
      table = comparison_tables.pairs(found).as_html()
      parts.append(html_page.details(text, table, is_open=outcome in SETTLED))
  return ''.join(parts)


def _commands(study: Study) -> str:
  first, *others = sentences.commands(study)
  folded = html_page.details(
    f'The commands of the runs ({len(others)})', listing(others)
  )
  return f'<h3>The command of the study</h3>{listing([first])}{folded}'
