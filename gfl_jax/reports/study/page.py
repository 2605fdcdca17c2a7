"""The report of a study, as a page, as Markdown and as CSV, from its study.json."""

import os
from collections.abc import Mapping
from pathlib import Path

from gfl_jax import files
from gfl_jax.errors import MissingFileError
from gfl_jax.reports import markup
from gfl_jax.reports.markup import details, listing, paragraph, section
from gfl_jax.reports.study import (
  comparison_tables,
  diagnostic_tables,
  figures,
  results,
  sentences,
  statistics,
  text_files,
)
from gfl_jax.reports.study.figures import Mark, Panel
from gfl_jax.reports.study.results import Comparison, Order, Study


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
    ValueError: it is damaged (see `results.load_study`).
  """
  study = results.load_study(folder)
  comparisons, order = results.compare_rows(study), results.compare_order(study)
  texts = {
    'results.csv': text_files.csv_text(study),
    'results.md': text_files.markdown(study, comparisons, order),
    'report.html': _page(study, comparisons, order),
  }
  for name, text in texts.items():
    files.atomic_write(Path(folder) / name, text)
  return Path(folder) / 'report.html'


def summary_table(root: str | os.PathLike) -> str:
  """All studies below a folder as Markdown: a table each, and a few sentences.

  Studies without a finished run are left out. Links to the results of each are relative
  to the current folder.

  Raises:
    FileNotFoundError: no study.json lies below root, or none with a finished run.
    ValueError: one of them is damaged.
  """
  root = Path(root).resolve()
  folders = sorted(path.parent for path in root.glob('**/study.json'))
  studies = {folder: results.load_study(folder) for folder in folders}
  if not studies:
    raise MissingFileError(f'no study.json below {root}: run scripts/ablate.py first')
  studies = {f: s for f, s in studies.items() if any(row.finished for row in s.rows)}
  if not studies:
    raise MissingFileError(f'no study below {root} has a finished run yet')
  scopes = [sentences.scope(study) for study in studies.values() if study.has_paper]
  parts = [f'{markup.escape_markdown(text)}\n' for text in dict.fromkeys(scopes)]
  for folder, study in studies.items():
    link = Path(os.path.relpath(folder / 'results.md')).as_posix()
    lines = [] if study.has_paper else [sentences.scope(study)]
    lines += sentences.in_short(study, results.compare_order(study))
    table = comparison_tables.overview(study, results.compare_rows(study))
    parts.append(
      f'**[{markup.escape_markdown(sentences.heading(study))}](<{link}>)**\n\n'
      f'{markup.escape_markdown(sentences.setting(study))}\n\n'
      f'{table.without("std", "p (Holm)").as_markdown()}\n'
      f'{markup.escape_markdown(" ".join(lines))}\n'
    )
  return '\n'.join(parts)


def _page(study: Study, comparisons: Mapping[str, Comparison], order: Order) -> str:
  *found, scope = sentences.finding(study, comparisons, order)
  problems = comparison_tables.problems(study)
  # A command of a shared run is listed once.
  commands = dict.fromkeys(run['command'] for _, run in study.runs if run['command'])
  # The figure has the numbers of the paper.
  table = comparison_tables.overview(study, comparisons)
  table = table.without(*comparison_tables.PAPER_COLUMNS)
  environment = comparison_tables.environment(study)
  scales = " The paper's strips, here and below, have their own scale."
  body = [
    _headline(study, order),
    f'<section class="finding"><h2>Findings</h2>{"".join(map(paragraph, found))}'
    f'{paragraph(scope, "scope")}</section>\n',
    section('Runs that give no AP', problems.as_html()) if problems.rows else '',
    section(
      'Average precision',
      _precision(study),
      paragraph(
        'Small dots: one run each. Large dot and bar: mean and 95 % interval; an arrow '
        f'marks an end beyond the scale.{scales if study.has_paper else ""}'
      ),
    ),
    section(
      'Difference to the baseline',
      _differences(study, comparisons),
      paragraph(
        "Green: better, red: worse, both after Holm's correction; gray: neither shown."
      ),
      table.as_html(),
      *map(paragraph, sentences.method(study)),
    ),
    _order(order),
    section('AP by IoU and size', comparison_tables.precision(study).as_html()),
    section('Diagnostics', diagnostic_tables.as_html(study)),
    section(
      'Runs',
      comparison_tables.runs(study).as_html(),
      f'<h3>The command of the study</h3>{listing(study.about["command"])}',
      details(
        f'The commands of the runs ({len(commands)})', listing('\n'.join(commands))
      ),
    ),
    section('Machine, versions and cost', environment.as_html()),
  ]
  return markup.page(sentences.heading(study), ''.join(body))


def _headline(study: Study, order: Order) -> str:
  finished = sum(len(row.finished) for row in study.rows)
  seconds = study.about.get('seconds')
  tiles = {
    'runs finished': f'{finished} of {len(study.runs)}',
    'rows': str(len(study.rows)),
    'seeds': str(len(study.seeds)),
  }
  if order.pairs:
    confirmed, contradicted = (len(order.of(outcome)) for outcome in results.SETTLED)
    label = f'pairs of the paper: {confirmed} confirmed, {contradicted} contradicted'
    tiles[label] = f'{confirmed + contradicted} of {len(order.pairs)}'
  tiles['time of all runs'] = markup.duration(seconds) if seconds else markup.DASH
  return markup.header(
    sentences.heading(study),
    paragraph(sentences.setting(study)),
    paragraph(study.about['question'], 'question'),
    markup.tiles(tiles),
  )


def _precision(study: Study) -> str:
  """AP of each row, with the paper's on its own scale beside it."""
  baselines = [study.baseline_of(row) for row in study.rows]
  titles, ours, paper = [], [], []
  for row in study.rows:
    is_baseline, aps, ap = row in baselines, row.points('AP'), row.paper.get('AP')
    notes = ['baseline'] * is_baseline + [row.note] * bool(row.note)
    titles.append((row.title, '; '.join(notes)))
    found = statistics.estimate(aps.values())
    color = 'baseline' if is_baseline else 'plain'
    ours.append(Mark(aps, found, color, comparison_tables.with_interval(found)))
    paper.append(Mark({}, statistics.estimate([ap]), 'noise', markup.number(ap, 1)))
  panels = [Panel(f'Ours: {sentences.base(study)}', 'AP', 45, ours)]
  if study.has_paper:
    panels.append(Panel('Paper: COCO, R-50, 90k', 'AP', 16, paper))
  return figures.strips(titles, panels)


def _differences(study: Study, comparisons: Mapping[str, Comparison]) -> str:
  """Paired differences, seed by seed, with the paper's on its own scale beside them."""
  if not comparisons:
    return paragraph('The study has no row besides its baseline.')
  titles, ours, paper = [], [], []
  for one in comparisons.values():
    against = '' if one.other is study.baseline else f'; against {one.other.title}'
    titles.append((one.row.title, one.conclusion + against))
    color = one.conclusion if one.conclusion in figures.COLORS else 'noise'
    text = comparison_tables.difference_text(one.difference)
    ours.append(Mark(one.by_seed, one.difference, color, text))
    gap = statistics.estimate([one.paper_difference])
    paper.append(Mark({}, gap, 'noise', comparison_tables.paper_difference(one)))
  panels = [Panel('Ours: AP minus baseline, same seed', 'points', 40, ours, True)]
  if any(mark.found for mark in paper):
    panels.append(Panel("Paper's difference", 'points', 16, paper, True))
  return figures.strips(titles, panels)


def _order(order: Order) -> str:
  if not order.pairs and not order.num_unknown:
    return ''
  parts = list(map(paragraph, sentences.order_notes(order)))
  for outcome, words in results.OUTCOMES.items():
    if found := order.of(outcome):
      title = f'Ours: {words} ({len(found)})'
      table = comparison_tables.pairs(found).as_html()
      parts.append(details(title, table, is_open=outcome in results.SETTLED))
  return section("Order of the rows, ours and the paper's", *parts)
