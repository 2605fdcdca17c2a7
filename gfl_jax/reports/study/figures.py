"""The figures of a study: one line per row, drawn beside its numbers.

A figure is an HTML table. Its text is that of the page, so a title may be long and in
any script; its strips are SVG with places in per cent, so they fit every window.
"""

import html
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from matplotlib.ticker import MaxNLocator

from gfl_jax.reports import markup
from gfl_jax.reports.study.statistics import Estimate

COLORS = {
  'baseline': '#1f2937',
  'plain': '#2563eb',
  'better': '#047857',
  'worse': '#b91c1c',
  'noise': '#6b7280',
}
_LOCATOR = MaxNLocator(nbins=5, steps=[1, 2, 5, 10])
_MARGIN = 5.0  # per cent of a strip left free at each end


class Mark(NamedTuple):
  """What a strip shows of one row.

  Attributes:
    seeds: the value of every run by its seed, small dots.
    found: the large dot and its interval; None draws nothing.
    color: one of `COLORS`.
    text: beside the strip.
  """

  seeds: Mapping[int, float]
  found: Estimate | None
  color: str
  text: str


class Panel(NamedTuple):
  """A column of strips on one scale.

  Attributes:
    title: above the strips.
    heading: above the texts beside them.
    width: of the strips, in per cent of the figure.
    marks: one for each row.
    has_zero: whether 0 is on the scale and drawn as a line.
  """

  title: str
  heading: str
  width: int
  marks: list[Mark]
  has_zero: bool = False


def strips(titles: Sequence[tuple[str, str]], panels: Sequence[Panel]) -> str:
  """A figure with a line per row and a strip per panel, as HTML.

  Args:
    titles: of each row: its title and a small line below, plain text; may be empty.
    panels: each with as many marks as there are rows.
  """
  names = ['<th class="title"></th>']
  for title, note in titles:
    small = f'<br><small>{html.escape(note)}</small>' if note else ''
    names.append(f'<td class="title">{html.escape(title)}{small}</td>')
  columns = [[*names, '<td></td>'], *map(_column, panels)]
  *lines, axis = map(''.join, zip(*columns, strict=True))
  rows = ''.join(f'<tr>{cells}</tr>\n' for cells in lines)
  rows += f'<tr class="axis">{axis}</tr>'
  return markup.wide(f'<table class="strips">\n{rows}\n</table>')


def _column(panel: Panel) -> list[str]:
  """The cells of a panel: its head, a strip and a text for each row, its axis."""
  scale = _Scale(panel)
  head = (
    f'<th class="head" style="width:{panel.width}%">{html.escape(panel.title)}</th>'
    f'<th class="number">{html.escape(panel.heading)}</th>'
  )
  strips = [scale.grid + _drawn(mark, scale) for mark in panel.marks] + [scale.labels]
  texts = [html.escape(mark.text) for mark in panel.marks] + ['']
  return [head] + [
    f'<td class="strip"><svg>{strip}</svg></td><td class="number">{text}</td>'
    for strip, text in zip(strips, texts, strict=True)
  ]


class _Scale:
  """The ticks of a panel, and its grid and labels as SVG.

  It holds all dots, and the intervals as far as they leave the dots readable: two
  seeds can have an interval that is ten times as wide as all rows together.
  """

  def __init__(self, panel: Panel):
    found = [mark.found for mark in panel.marks if mark.found]
    dots = [value for mark in panel.marks for value in mark.seeds.values()]
    dots += [one.mean for one in found]
    dots += [0.0] if panel.has_zero or not dots else []
    ends = [one.mean + s * (one.half_width or 0.0) for one in found for s in (-1, 1)]
    low, high = min(dots), max(dots)
    room = (high - low) or 0.5
    low = max(min([low, *ends]), low - room)
    high = min(max([high, *ends]), high + room)
    if low == high:
      low, high = low - room, high + room
    # From the last tick below all values to the first one above them.
    ticks = [float(tick) for tick in _LOCATOR.tick_values(low, high)]
    self.low, self.high = ticks[0], ticks[-1]
    places = [(tick, '#eef0f3', 'none') for tick in ticks]
    places += [(0.0, '#6b7280', '4 3')] if panel.has_zero else []
    self.grid = ''.join(
      f'<line x1="{self.at(value)}" x2="{self.at(value)}" y1="0" y2="100%" '
      f'stroke="{color}" stroke-dasharray="{dashes}"/>'
      for value, color, dashes in places
    )
    # Without needless digits, and without a minus before 0.
    texts = [f'{round(tick, 6) + 0.0:g}'.replace('-', '−') for tick in ticks]
    self.labels = ''.join(
      f'<text x="{self.at(tick)}" y="15">{text}</text>'
      for tick, text in zip(ticks, texts, strict=True)
    )

  def at(self, value: float) -> str:
    """A value's place on the strip, as '12.34%' of its width."""
    share = (value - self.low) / (self.high - self.low)
    return f'{_MARGIN + (100 - 2 * _MARGIN) * share:.2f}%'


def _drawn(mark: Mark, scale: _Scale) -> str:
  """Above the middle the mean and its interval, below it the seeds."""
  color, above = COLORS[mark.color], ''
  if mark.found:
    above = _interval(mark.found, scale, color) + (
      f'<circle cx="{scale.at(mark.found.mean)}" cy="50%" r="5.5" fill="{color}">'
      f'<title>{html.escape(mark.text)}</title></circle>'
    )
  dots = ''.join(
    f'<circle cx="{scale.at(value)}" cy="50%" r="3.5" fill="white" '
    f'stroke="{color}" stroke-width="1.4"><title>seed {seed}: {value:.2f}</title>'
    '</circle>'
    for seed, value in mark.seeds.items()
  )
  shift = -6 if mark.seeds else 0
  return (
    f'<g transform="translate(0 {shift})">{above}</g>'
    f'<g transform="translate(0 9)">{dots}</g>'
  )


def _interval(found: Estimate, scale: _Scale, color: str) -> str:
  """A bar with a stop at each end; an end beyond the scale has an arrow instead."""
  if found.half_width is None:
    return ''
  stops, places = '', []
  for sign, limit in ((-1, scale.low), (1, scale.high)):
    end = found.mean + sign * found.half_width
    is_beyond = sign * (end - limit) > 1e-9
    places.append(scale.at(limit if is_beyond else end))
    # A nested svg is a place in per cent to draw at in pixels.
    shape = f'M{-5 * sign} -5 L0 0 L{-5 * sign} 5' if is_beyond else 'M0 -5 V5'
    stops += (
      f'<svg x="{places[-1]}" y="50%" overflow="visible"><path d="{shape}" fill="none" '
      f'stroke="{color}" stroke-width="1.8"/></svg>'
    )
  return (
    f'<line x1="{places[0]}" x2="{places[1]}" y1="50%" y2="50%" stroke="{color}" '
    f'stroke-width="2.2"/>{stops}'
  )
