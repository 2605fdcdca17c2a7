"""Tables of text, as HTML and as Markdown, and how their values are written."""

import html
import math
import re
from collections.abc import Mapping
from typing import NamedTuple

from gfl_jax.reports import html_page

DASH = '–'  # what is not known
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

  def only(self, names: list[str]) -> 'Table':
    """These columns, in this order."""
    columns = [self.head.index(name) for name in names]
    align = ''.join(self.align[i] for i in columns)
    return Table(align, names, [[row[i] for i in columns] for row in self.rows])

  def as_html(self) -> str:
    head = ''.join(
      _html_cell('th', align, cell)
      for align, cell in zip(self.align, self.head, strict=True)
    )
    rows = [
      ''.join(
        _html_cell('td', align, cell)
        for align, cell in zip(self.align, row, strict=True)
      )
      for row in self.rows
    ]
    lines = ''.join(f'<tr>{row}</tr>\n' for row in [head, *rows])
    return html_page.wide(f'<table>\n{lines}</table>')

  def as_markdown(self) -> str:
    alignment = [_MARKDOWN_ALIGNMENT[align] for align in self.align]
    rows = [[escape_markdown(cell) for cell in row] for row in [self.head, *self.rows]]
    lines = [rows[0], alignment, *rows[1:]]
    return ''.join(f'| {" | ".join(line)} |\n' for line in lines)


def _html_cell(tag: str, align: str, text: str) -> str:
  number = ' class="number"' if align == 'r' else ''
  return f'<{tag}{number}>{html.escape(text)}</{tag}>'


def escape_markdown(text: str) -> str:
  """Text that Markdown (GitHub's) shows as it is, in one line."""
  # An underscore within a word is only itself, and names are full of them.
  return re.sub(r'([\\`*|<\[$~]|\b_|_\b)', r'\\\1', ' '.join(text.split()))


def number(value: float | None, digits: int = 3) -> str:
  """With so many digits after the point; a dash for None and what is not finite."""
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
