"""The report of a study as Markdown and as CSV."""

import csv
import io
from collections.abc import Mapping

from gfl_jax.evaluation.coco_metrics import METRICS
from gfl_jax.reports.markup import escape_markdown
from gfl_jax.reports.study import comparison_tables, diagnostic_tables, sentences
from gfl_jax.reports.study.results import Comparison, Order, Study


def markdown(study: Study, comparisons: Mapping[str, Comparison], order: Order) -> str:
  """The page as Markdown, without its figures."""
  notes = [f'{row.title}: {row.note}' for row in study.rows if row.note]
  parts = [
    f'# {escape_markdown(sentences.heading(study))}\n',
    f'{escape_markdown(sentences.setting(study))}\n',
    f'{escape_markdown(study.about["question"])}\n',
    _markdown_list(sentences.finding(study, comparisons, order)),
    comparison_tables.overview(study, comparisons).as_markdown(),
    _markdown_list([*sentences.method(study), *notes]),
  ]
  problems = comparison_tables.problems(study)
  if problems.rows:
    parts += ['## Runs that give no AP\n', problems.as_markdown()]
  if order.pairs:
    notes = _markdown_list(sentences.order_notes(order))
    table = comparison_tables.pairs(order.pairs).as_markdown()
    parts += ["## Order of the rows, ours and the paper's\n", notes, table]
  parts += ['## AP by IoU and size\n', comparison_tables.precision(study).as_markdown()]
  table = diagnostic_tables.table(study)
  if table.rows:
    parts += ['## Diagnostics\n', table.as_markdown(), f'{diagnostic_tables.LEGEND}\n']
  parts += ['## Runs\n', comparison_tables.runs(study).as_markdown()]
  commands = '\n'.join(sentences.command_patterns(study))
  parts += [f'```\n{commands}\n```\n']
  if '{seed}' in commands:
    parts += ['{seed} and {digest}: as in the folders above.\n']
  parts += ['## Machine, versions and cost\n']
  parts += [comparison_tables.environment(study).as_markdown()]
  return '\n'.join(parts)


def _markdown_list(lines: list[str]) -> str:
  return ''.join(f'- {escape_markdown(line)}\n' for line in lines)


def csv_text(study: Study) -> str:
  """A line per run; metrics as in metrics.json, and the paper's APs on its scale."""
  lines, paper = [], [f'paper_{name}' for name in METRICS[:6]]
  for row, run in study.runs:
    line = {key: study.about[key] for key in ('study', 'base')}
    line |= {'row': row.name, 'title': row.title}
    line |= {key: run[key] for key in ('seed', 'status', 'error')}
    line |= {'run_seconds': run['seconds']} | dict.fromkeys(paper)
    line |= {f'paper_{name}': round(ap / 100, 6) for name, ap in row.paper.items()}
    metrics = run['metrics'] or {}
    line |= {key: x for key, x in metrics.items() if not isinstance(x, Mapping)}
    diagnostics = metrics.get('diagnostics') or {}
    line |= {f'diagnostics.{key}': value for key, value in diagnostics.items()}
    lines.append(line | {'folder': run['folder'], 'command': run['command']})
  head = list(dict.fromkeys(key for line in lines for key in line))
  file = io.StringIO()
  writer = csv.DictWriter(file, head, lineterminator='\n')
  writer.writeheader()
  writer.writerows(lines)
  return file.getvalue()
