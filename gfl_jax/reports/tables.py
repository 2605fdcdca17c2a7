"""A table of text, as HTML and as Markdown."""

import html
import re
from typing import NamedTuple

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
    return f'<div class="wide"><table>\n{lines}</table></div>\n'

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
