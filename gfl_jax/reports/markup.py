"""HTML and Markdown: a page that loads nothing, its parts, tables and their values."""

import html
import importlib.resources
import math
import re
from collections.abc import Mapping
from typing import NamedTuple

from flax import traverse_util

DASH = '–'  # for an unknown value
_HTML_ALIGNMENT = {'l': '', 'r': ' class="number"'}
_MARKDOWN_ALIGNMENT = {'l': '---', 'r': '--:'}
NOT_EVALUATED = 'Not evaluated yet.'


def page(title: str, body: str) -> str:
  """A whole page of a plain-text title and an HTML body, with page.css in it."""
  style = importlib.resources.files('gfl_jax.reports').joinpath('page.css').read_text()
  return (
    '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
    '<meta name="viewport" content="width=device-width, initial-scale=1">'
    f'<title>{html.escape(title)}</title><style>{style}</style></head>\n'
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


def figure(content: str, caption: str) -> str:
  """HTML with a plain-text caption below it."""
  return f'<figure>{content}<figcaption>{html.escape(caption)}</figcaption></figure>'


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
