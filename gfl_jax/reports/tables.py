"""Tables of text, as HTML and as Markdown, and how their values are written."""

import html
import math
import re
from collections.abc import Mapping
from typing import NamedTuple

from gfl_jax.reports import html_page

DASH = '–'  # for an unknown value
_HTML_ALIGNMENT = {'l': '', 'r': ' class="number"'}
_MARKDOWN_ALIGNMENT = {'l': '---', 'r': '--:'}


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
    return html_page.wide(f'<table>\n{lines}</table>')

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


def flatten(tree: Mapping, prefix: str = '') -> list[list[str]]:
  """Rows of a nested dict: 'a.b' and the value as text."""
  rows = []
  for key, value in tree.items():
    if isinstance(value, Mapping):
      rows += flatten(value, f'{prefix}{key}.')
    else:
      rows.append([f'{prefix}{key}', str(value)])
  return rows
