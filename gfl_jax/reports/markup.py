"""HTML and Markdown: a page that loads nothing, its parts, tables and their values."""

import html
import math
import re
from collections.abc import Mapping
from typing import NamedTuple

from flax import traverse_util

DASH = '–'  # for an unknown value
_HTML_ALIGNMENT = {'l': '', 'r': ' class="number"'}
_MARKDOWN_ALIGNMENT = {'l': '---', 'r': '--:'}
NOT_EVALUATED = 'Not evaluated yet.'
_STYLE = """
:root { --ink: #1f2937; --soft: #6b7280; --line: #e5e7eb; --accent: #2563eb; }
* { box-sizing: border-box; }
body { margin: 0; background: #f6f7f9; color: var(--ink); line-height: 1.5;
  font-family: system-ui, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 32px 20px 64px; }
h1 { font-size: 1.7rem; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 0 0 12px; }
h3 { font-size: .95rem; margin: 18px 0 8px; }
p { margin: 0 0 14px; color: var(--soft); }
header p { margin: 4px 0 16px; } header p.question { color: var(--ink);
  font-size: 1.05rem; }
section { background: white; border: 1px solid var(--line); border-radius: 12px;
  padding: 20px 22px; margin-top: 20px; }
section > :last-child { margin-bottom: 0; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(140px, 1fr));
  gap: 12px; }
.tile { background: white; border: 1px solid var(--line); border-radius: 12px;
  padding: 12px 16px; }
.tile b { display: block; font-size: 1.45rem; font-weight: 650; line-height: 1.3; }
.tile span { color: var(--soft); font-size: .85rem; }
.finding { border-left: 4px solid var(--accent); }
.finding p { color: var(--ink); margin-bottom: 8px; }
.finding p.scope { font-weight: 600; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 5px 18px 5px 0; vertical-align: top;
  border-bottom: 1px solid var(--line); overflow-wrap: break-word; }
th { font-weight: 600; }
th.number, td.number { text-align: right; white-space: nowrap; }
.wide { overflow-x: auto; margin-bottom: 16px; font-size: .92rem; }
.wide td:first-child { min-width: 9em; }
pre { background: #f6f7f9; border-radius: 8px; padding: 14px; overflow-x: auto;
  font-size: .82rem; margin: 0 0 14px; }
details { margin-bottom: 14px; }
summary { cursor: pointer; font-weight: 600; margin-bottom: 8px; }
"""


def page(title: str, body: str, *, style: str = '') -> str:
  """A whole page of a plain-text title, an HTML body and additional CSS."""
  return (
    '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
    '<meta name="viewport" content="width=device-width, initial-scale=1">'
    f'<title>{html.escape(title)}</title><style>{_STYLE}{style}</style></head>\n'
    f'<body><main>{body}</main></body></html>\n'
  )


def section(title: str, *content: str) -> str:
  """A box with a heading; the title is plain text, the content HTML."""
  return f'<section><h2>{html.escape(title)}</h2>{"".join(content)}</section>\n'


def header(title: str, *content: str) -> str:
  """The page's head; the title is plain text, the content HTML."""
  return f'<header><h1>{html.escape(title)}</h1>{"".join(content)}</header>\n'


def wide(content: str) -> str:
  """A box that scrolls where the window is too narrow for its content."""
  return f'<div class="wide">{content}</div>\n'


def paragraph(text: str, kind: str = '') -> str:
  """Plain text as a paragraph of a CSS class."""
  kind = f' class="{kind}"' if kind else ''
  return f'<p{kind}>{html.escape(text)}</p>'


def tiles(entries: dict[str, str]) -> str:
  """Numbers side by side, each above its label; {label: value}, plain text."""
  boxes = ''.join(
    f'<div class="tile"><b>{html.escape(value)}</b>'
    f'<span>{html.escape(label)}</span></div>'
    for label, value in entries.items()
  )
  return f'<div class="tiles">{boxes}</div>'


def details(summary: str, *content: str, is_open: bool = False) -> str:
  """Content that folds under its summary; the summary is plain text, the rest HTML."""
  tag = '<details open>' if is_open else '<details>'
  return f'{tag}<summary>{html.escape(summary)}</summary>{"".join(content)}</details>'


def listing(text: str) -> str:
  """Plain text in a fixed-width font."""
  return f'<pre>{html.escape(text)}</pre>'


class Table(NamedTuple):
  """A table; every cell is plain text, escaped only when it is written out.

  Attributes:
    align: 'l' (text) or 'r' (numbers) for each column.
    head: the columns' names.
    rows: their cells.
  """

  align: str
  head: list[str]
  rows: list[list[str]]

  def without(self, *names: str) -> 'Table':
    """The table without the columns of these names."""
    kept = [i for i, name in enumerate(self.head) if name not in names]
    align = ''.join(self.align[i] for i in kept)
    head, *rows = ([row[i] for i in kept] for row in (self.head, *self.rows))
    return Table(align, head, rows)

  def as_html(self) -> str:
    lines = ''
    for tag, row in [('th', self.head), *(('td', row) for row in self.rows)]:
      cells = ''.join(
        f'<{tag}{_HTML_ALIGNMENT[align]}>{html.escape(cell)}</{tag}>'
        for align, cell in zip(self.align, row, strict=True)
      )
      lines += f'<tr>{cells}</tr>\n'
    return wide(f'<table>\n{lines}</table>')

  def as_markdown(self) -> str:
    head, *rows = (list(map(escape_markdown, row)) for row in (self.head, *self.rows))
    alignment = [_MARKDOWN_ALIGNMENT[align] for align in self.align]
    return ''.join(f'| {" | ".join(row)} |\n' for row in (head, alignment, *rows))


def escape_markdown(text: str) -> str:
  """Text in one line, escaped so that GitHub's Markdown shows it unchanged."""
  # An underscore within a word needs no escape.
  return re.sub(r'([\\`*|<\[$~]|\b_|_\b)', r'\\\1', ' '.join(text.split()))


def number(value: float | None, digits: int = 3) -> str:
  """A number with this many decimals; a dash for None, NaN and infinity."""
  if value is None or not math.isfinite(value):
    return DASH
  return f'{value:.{digits}f}'


def duration(seconds: float) -> str:
  """'3 min 55 s', from an hour on '2 h 7 min'."""
  minutes, seconds = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f'{hours} h {minutes} min' if hours else f'{minutes} min {seconds} s'


def flatten(tree: Mapping) -> list[list[str]]:
  """Rows of a nested dict: 'a.b' and the value as text."""
  flat = traverse_util.flatten_dict(tree, sep='.')
  return [[str(name), str(value)] for name, value in flat.items()]
