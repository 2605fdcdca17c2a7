"""The figures of a report, each as a string that goes into an HTML page as it is.

They hold no text from the data (class names): matplotlib's font lacks most scripts, and
'$' starts a formula there. The page writes such text.
"""

import base64
import io
import itertools
from collections.abc import Mapping, Sequence

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator

INK = '#1f2937'
SERIES = ('#2563eb', '#dc2626', '#059669', '#d97706', '#7c3aed', '#0891b2', '#be185d')
TRUTH = '#111827'  # the color of true boxes, dashed
_DASHES = (0, (4, 3))
_SIDES = {'left': '#2563eb', 'top': '#7c3aed', 'right': '#dc2626', 'bottom': '#c2570c'}


def style():
  """A context for making figures; outside it matplotlib's settings are as before."""
  return matplotlib.style.context('gfl_jax.reports.figures')


def svg(figure: Figure) -> str:
  """The figure as an SVG element."""
  file = io.StringIO()
  figure.savefig(file, format='svg', dpi=150, metadata={'Date': None})
  text = file.getvalue()
  return text[text.index('<svg') :]  # without the XML heading, which HTML does not have


def data_uri(kind: str, data: bytes) -> str:
  """A picture's bytes as an address that needs no file; kind: 'image/jpeg', ..."""
  return f'data:{kind};base64,{base64.b64encode(data).decode()}'


def training_curves(lines: Sequence[Mapping]) -> str:
  """Loss terms, learning rate and speed over the steps, as an SVG element.

  Args:
    lines: the 'train' lines of metrics.jsonl, by rising step; NaN leaves a gap.
  """
  steps = [line['step'] for line in lines]
  # A single point would not show as a line.
  marker = {'marker': 'o'} if len(steps) < 3 else {}
  terms = [key for key in lines[-1] if key.startswith('loss')]
  with style():
    figure = Figure(figsize=(11, 3.4), layout='constrained')
    loss, *others = figure.subplots(1, 3, width_ratios=(2, 1, 1))
    for term, color in zip(terms, itertools.cycle(SERIES), strict=False):
      values = _column(lines, term)
      label = 'total' if term == 'loss' else term.removeprefix('loss_')
      if len(steps) >= 20:
        loss.plot(steps, values, color=color, alpha=0.2, linewidth=0.8)
        values = _smooth(values)
      loss.plot(steps, values, color=color, label=label, **marker)
    if any((_column(lines, term) > 0).any() for term in terms):
      loss.set_yscale('log')
      loss.yaxis.set_major_formatter('{x:g}')
      loss.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
      loss.yaxis.set_minor_formatter('')
    loss.set_title('Loss terms (log scale)')
    loss.legend(ncols=len(terms), loc='upper right', columnspacing=1.2)
    for axes, key, color in zip(
      others, ('learning_rate', 'images_per_second'), SERIES[::2], strict=False
    ):
      axes.plot(steps, _column(lines, key), color=color, **marker)
      axes.set(title=key.replace('_', ' ').capitalize(), ylim=(0, None))
    for axes in (loss, *others):
      _finish(axes)
    return svg(figure)


def ap_curves(lines: Sequence[Mapping]) -> str:
  """AP, AP50 and AP75 over the steps, as an SVG element.

  Args:
    lines: the 'eval' lines of metrics.jsonl, by rising step; None leaves a gap.
  """
  steps = [line['step'] for line in lines]
  with style():
    figure = Figure(figsize=(11, 3.2), layout='constrained')
    axes = figure.subplots()
    for name, color in zip(('AP', 'AP50', 'AP75'), SERIES, strict=False):
      axes.plot(steps, _column(lines, name), color=color, marker='o', label=name)
    axes.set_ylim(0, 1)
    axes.legend(ncols=3, loc='upper left')
    _finish(axes)
    return svg(figure)


def side_distributions(sample: Mapping, index: int, truth: np.ndarray | None) -> str:
  """One detection and the distributions of its four sides, as an img element.

  Left and right are drawn above the picture along x, top and bottom beside it along y:
  a clear side is a peak, an ambiguous one a broad hill; a line of full height is a side
  without a distribution.

  Args:
    sample: as in `annotated_image`, with 'edge_positions' px and 'edge_heights'
      [n, 4, m] (left, top, right, bottom; see `samples.collect_samples`) and 'edge_std'
      [n, 4] px.
    index: the detection.
    truth: the box [4] that it is drawn against, dashed.
  """
  box, stds = sample['boxes'][index], sample['edge_std'][index]
  positions, heights = sample['edge_positions'][index], sample['edge_heights'][index]
  with style():
    figure = Figure(figsize=(3.6, 3.6))
    (along_x, corner), (picture, along_y) = figure.subplots(
      2, 2, sharex='col', sharey='row', width_ratios=(3, 1.2), height_ratios=(1.2, 3)
    )
    figure.subplots_adjust(0.01, 0.01, 0.99, 0.99, wspace=0.03, hspace=0.03)
    corner.set_axis_off()
    _show_around(picture, sample['image'], box, stds)
    if truth is not None:
      # A white line below the dashes keeps them visible on any background.
      _outline(picture, truth, ['white'] * 4, linewidth=2.2)
      _outline(picture, truth, [TRUTH] * 4, linewidth=1.2, linestyle=_DASHES)
    _outline(picture, box, _SIDES.values(), linewidth=2)
    for side, color in enumerate(_SIDES.values()):
      true_position = None if truth is None else truth[side]
      axes = (along_x, along_y)[side % 2]
      _hill(axes, positions[side], heights[side], color, side % 2 == 1, true_position)
    peak = 1.05 * heights.max()
    along_x.set(ylim=(0, peak))
    along_y.set(xlim=(0, peak))
    if stds.any():
      _list_stds(corner, stds)
    for axes in (picture, along_x, along_y):
      axes.set(xticks=[], yticks=[])
    picture.spines[:].set_visible(True)
    along_x.spines['left'].set_visible(False)
    along_y.spines['bottom'].set_visible(False)
    file = io.BytesIO()
    figure.savefig(file, format='webp', dpi=170, pil_kwargs={'quality': 92})
  return f'<img alt="" src="{data_uri("image/webp", file.getvalue())}">'


def _show_around(axes: Axes, image: np.ndarray, box, stds) -> None:
  """Shows a square window of the image with room for the box and its uncertainty."""
  middle, size = (box[:2] + box[2:]) / 2, (box[2:] - box[:2]).max()
  half = size / 2 + max(0.25 * size, 2.5 * stds.max())
  low, high = middle - half, middle + half
  height, width = image.shape[:2]
  x1, y1 = np.clip(np.floor(low), 0, (width - 1, height - 1)).astype(int)
  x2, y2 = np.clip(np.ceil(high), 1, (width, height)).astype(int)
  axes.set_facecolor('#eef0f3')  # beyond the image
  axes.imshow(image[y1:y2, x1:x2], extent=(x1, x2, y2, y1), aspect='auto')
  axes.set(xlim=(low[0], high[0]), ylim=(high[1], low[1]))


def _outline(axes: Axes, box, colors, **style) -> None:
  """The sides left, top, right, bottom of a box, each in its color."""
  x1, y1, x2, y2 = box
  ends = ((x1, x1, y1, y2), (x1, x2, y1, y1), (x2, x2, y1, y2), (x1, x2, y2, y2))
  for (xa, xb, ya, yb), color in zip(ends, colors, strict=True):
    axes.plot([xa, xb], [ya, yb], color=color, scalex=False, scaley=False, **style)


def _hill(axes: Axes, positions, heights, color, is_vertical: bool, truth) -> None:
  """The distribution of one side, along x or, if vertical, along y."""
  # Down to zero at both ends of the grid: an open end would look like a mistake.
  positions, heights = np.pad(positions, 1, 'edge'), np.pad(heights, 1)
  if is_vertical:
    fill, curve, line = axes.fill_betweenx, (heights, positions), axes.axhline
  else:
    fill, curve, line = axes.fill_between, (positions, heights), axes.axvline
  fill(positions, heights, color=color, alpha=0.22, linewidth=0)
  dots = {'marker': '.', 'markersize': 3, 'markevery': slice(1, -1)}
  axes.plot(*curve, color=color, scalex=False, scaley=False, **dots)
  if truth is not None:
    line(truth, color=TRUTH, linewidth=1, linestyle=_DASHES)


def _list_stds(axes: Axes, stds) -> None:
  """The four standard deviations as text, in the corner that holds no picture."""
  font = {'ha': 'right', 'fontsize': 9, 'transform': axes.transAxes}
  axes.text(0.97, 0.9, 'σ in px', color=INK, **font)
  for row, ((name, color), std) in enumerate(zip(_SIDES.items(), stds, strict=True)):
    y, text = 0.7 - 0.2 * row, f'{name} {std:.1f}'
    axes.text(0.97, y, text, color=color, fontweight='bold', **font)


def _column(lines: Sequence[Mapping], key: str) -> np.ndarray:
  """A key's values as floats, NaN where a line lacks it or has None."""
  return np.array([line.get(key) for line in lines], float)


def _smooth(values: np.ndarray) -> np.ndarray:
  """Running mean over about a fortieth of the curve, leaving out NaN."""
  window = np.ones(2 * (len(values) // 80) + 1)
  finite = np.isfinite(values)
  total = np.convolve(np.where(finite, values, 0.0), window, 'same')
  count = np.convolve(finite, window, 'same')
  return np.where(finite, total / np.maximum(count, 1), np.nan)


def _finish(axes: Axes) -> None:
  axes.set(xlabel='step', xlim=(0, None))
  axes.grid(axis='y', color='#eef0f3')
  axes.set_axisbelow(True)
  axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
