"""The figures of a study: one line per row, drawn beside its numbers.

A figure is an HTML table. Its text is that of the page, so a title may be long and in
any script; its strips are SVG with places in per cent, so they fit every window.
"""

import html
from collections.abc import Sequence
from typing import NamedTuple

from matplotlib.ticker import MaxNLocator

from gfl_jax.reports import html_page

STYLE = """
.strips { width: 100%; min-width: 860px; }
.strips td, .strips th { padding: 9px 14px 9px 0; vertical-align: middle; }
.strips .title { width: 20%; min-width: 150px; }
.strips .strip { position: relative; height: 46px; padding: 0; }
.strips .strip > svg { position: absolute; inset: 0; width: 100%; height: 100%;
  overflow: visible; }
.strips .axis .strip { height: 22px; } .strips .axis td { border-bottom: 0; }
.strips text { font-size: 11px; fill: var(--soft); text-anchor: middle; }
.strips td.number, .strips th.number { padding-left: 14px; width: 1%; }
.strips .head { font-weight: 600; padding-left: 6px; }
.strips small { color: var(--soft); }
"""
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
    seeds: (seed, value) of every run, small dots.
    mean: the large dot; None draws nothing.
    half_width: of the interval around the mean; None draws no bar.
    color: one of `COLORS`.
    text: beside the strip.
  """

  seeds: Sequence[tuple[int, float]]
  mean: float | None
  half_width: float | None
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
  scales = [_Scale(panel) for panel in panels]
  head, axes = '<th class="title"></th>', '<td></td>'
  for panel, scale in zip(panels, scales, strict=True):
    head += (
      f'<th class="head" style="width:{panel.width}%">{html.escape(panel.title)}</th>'
      f'<th class="number">{html.escape(panel.heading)}</th>'
    )
    axes += f'{_strip(scale.labels)}<td></td>'
  lines = [f'<tr>{head}</tr>']
  for index, (title, note) in enumerate(titles):
    small = f'<br><small>{html.escape(note)}</small>' if note else ''
    cells = f'<td class="title">{html.escape(title)}{small}</td>'
    for panel, scale in zip(panels, scales, strict=True):
      mark = panel.marks[index]
      cells += _strip(scale.grid + _drawn(mark, scale))
      cells += f'<td class="number">{html.escape(mark.text)}</td>'
    lines.append(f'<tr>{cells}</tr>')
  lines.append(f'<tr class="axis">{axes}</tr>')
  rows = '\n'.join(lines)
  return html_page.wide(f'<table class="strips">\n{rows}\n</table>')


def _strip(content: str) -> str:
  return f'<td class="strip"><svg>{content}</svg></td>'


class _Scale:
  """The ticks of a panel, and its grid and labels as SVG.

  It holds all dots, and the intervals as far as they leave the dots readable: two
  seeds can have an interval that is ten times as wide as all rows together.
  """

  def __init__(self, panel: Panel):
    means = [(m.mean, m.half_width) for m in panel.marks if m.mean is not None]
    dots = [value for mark in panel.marks for _, value in mark.seeds]
    dots += [mean for mean, _ in means]
    dots += [0.0] if panel.has_zero or not dots else []
    low, high = min(dots), max(dots)
    room = (high - low) or 0.5
    ends = [(mean - half, mean + half) for mean, half in means if half is not None]
    low = min([low, *(max(end[0], low - room) for end in ends)])
    high = max([high, *(min(end[1], high + room) for end in ends)])
    if low == high:
      low, high = low - room, high + room
    # From the last tick below all values to the first one above them.
    ticks = [float(tick) for tick in _LOCATOR.tick_values(low, high)]
    self.low, self.high = ticks[0], ticks[-1]
    places = [f'{self.at(tick):.2f}%' for tick in ticks]
    self.grid = ''.join(
      f'<line x1="{place}" x2="{place}" y1="0" y2="100%" stroke="#eef0f3"/>'
      for place in places
    )
    if panel.has_zero:
      place = f'{self.at(0):.2f}%'
      self.grid += (
        f'<line x1="{place}" x2="{place}" y1="0" y2="100%" stroke="#6b7280" '
        'stroke-dasharray="4 3"/>'
      )
    self.labels = ''.join(
      f'<text x="{place}" y="15">{_short(tick)}</text>'
      for place, tick in zip(places, ticks, strict=True)
    )

  def at(self, value: float) -> float:
    """A value's place in per cent of the strip's width."""
    share = (value - self.low) / (self.high - self.low)
    return _MARGIN + (100 - 2 * _MARGIN) * share


def _drawn(mark: Mark, scale: _Scale) -> str:
  """Above the middle the mean and its interval, below it the seeds."""
  color, parts = COLORS[mark.color], []
  above = '<g transform="translate(0 -6)">' if mark.seeds else '<g>'
  if mark.mean is not None:
    if mark.half_width is not None:
      parts.append(_interval(mark.mean, mark.half_width, scale, color))
    parts.append(
      f'<circle cx="{scale.at(mark.mean):.2f}%" cy="50%" r="5.5" fill="{color}">'
      f'<title>{html.escape(mark.text)}</title></circle>'
    )
  dots = ''.join(
    f'<circle cx="{scale.at(value):.2f}%" cy="50%" r="3.5" fill="white" '
    f'stroke="{color}" stroke-width="1.4"><title>seed {seed}: {value:.2f}</title>'
    '</circle>'
    for seed, value in mark.seeds
  )
  return f'{above}{"".join(parts)}</g><g transform="translate(0 9)">{dots}</g>'


def _interval(mean: float, half_width: float, scale: _Scale, color: str) -> str:
  """A bar with a stop at each end; an end beyond the scale has an arrow instead."""
  parts, places = [], []
  for sign, limit in ((-1, scale.low), (1, scale.high)):
    end = mean + sign * half_width
    is_beyond = sign * (end - limit) > 1e-9
    place = f'{scale.at(limit if is_beyond else end):.2f}%'
    places.append(place)
    # A nested svg is a place in per cent to draw at in pixels.
    shape = f'M{-5 * sign} -5 L0 0 L{-5 * sign} 5' if is_beyond else 'M0 -5 V5'
    parts.append(
      f'<svg x="{place}" y="50%" overflow="visible"><path d="{shape}" fill="none" '
      f'stroke="{color}" stroke-width="1.8"/></svg>'
    )
  bar = (
    f'<line x1="{places[0]}" x2="{places[1]}" y1="50%" y2="50%" stroke="{color}" '
    'stroke-width="2.2"/>'
  )
  return bar + ''.join(parts)


def _short(value: float) -> str:
  """A tick's number, without needless digits and without a minus before 0."""
  return f'{round(value, 6) + 0.0:g}'.replace('-', '−')
