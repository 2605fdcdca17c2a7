"""Figures of the diagnostics, as SVG elements; see diagnostics.py for the measures."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from gfl_jax.evaluation.diagnostics import LEVELS
from gfl_jax.reports import plots

_BLUE, _RED = plots.SERIES[:2]
_GREY, _PALE = '#9ca3af', '#eef0f3'


def score_figure(arrays: Mapping[str, np.ndarray]) -> str:
  """Scores of true positives and negatives, and the reliability of the score.

  Args:
    arrays: `sample` and `reliability` of `diagnostics.summarize`. The first panel, the
      class score against the quality, is there if the score has a branch.
  """
  class_score, quality, score, iou, positive = arrays['sample'].T
  has_branch = np.isfinite(quality).any()
  with plots.style():
    figure = Figure(figsize=(11, 3.8), layout='constrained')
    panels = figure.subplots(1, 2 + has_branch, squeeze=False)[0]
    if has_branch:
      _scatter(panels[0], class_score, quality, positive, 'class score', 'quality')
      panels[0].set_title('Two scores of a candidate')
    _scatter(panels[-2], score, iou, positive, 'final score', 'IoU with the true box')
    panels[-2].set_title('Final score and IoU')
    panels[-2].legend(loc='lower right', frameon=True, framealpha=0.8)
    _reliability(panels[-1], arrays['reliability'])
    return plots.svg(figure)


def _scatter(axes: Axes, x, y, positive, x_label: str, y_label: str) -> None:
  groups = ((0, _RED, 'true negatives'), (1, _BLUE, 'true positives'))
  for value, color, label in groups:
    group = positive == value
    axes.scatter(
      x[group], y[group], s=7, color=color, alpha=0.35, linewidths=0, label=label,
      rasterized=True,
    )  # fmt: skip
  _unit_square(axes, x_label, y_label)


def _reliability(axes: Axes, table: np.ndarray) -> None:
  counts, scores, ious = table.T
  edges = np.linspace(0, 1, len(table) + 1)
  share = counts / max(counts.sum(), 1)
  axes.bar(
    edges[:-1], share, np.diff(edges), align='edge', color=_PALE, label='share of all'
  )
  axes.plot([0, 1], [0, 1], color=_GREY, linewidth=1, linestyle='--')
  axes.plot(scores, ious, color=_BLUE, marker='o', markersize=4, label='detections')
  _unit_square(axes, 'score of a detection', 'mean IoU')
  axes.set_title('Is the score an IoU?')
  axes.legend(loc='upper left')


def _unit_square(axes: Axes, x_label: str, y_label: str) -> None:
  axes.set_xlim(-0.02, 1.02)
  axes.set_ylim(-0.02, 1.02)
  axes.set_xlabel(x_label)
  axes.set_ylabel(y_label)


def spread_figure(
  arrays: Mapping[str, np.ndarray], coverage: Sequence[float | None]
) -> str:
  """Coverage of central intervals and, where the true spread is known, the spreads.

  Args:
    arrays: `edge_kinds`, `kind_table` and `spread_sample` of `diagnostics.summarize`.
    coverage: shares at `LEVELS`, none of them None.
  """
  names = arrays['edge_kinds'].tolist()
  has_spread = bool(names) and len(arrays['spread_sample']) > 0
  with plots.style():
    figure = Figure(figsize=(11, 3.8), layout='constrained')
    grid = figure.add_gridspec(1, 3)
    if has_spread:
      _spreads(figure.add_subplot(grid[0]), arrays['spread_sample'], names)
      _mean_spreads(figure.add_subplot(grid[1]), arrays['kind_table'], names)
    _coverage(figure.add_subplot(grid[2 if has_spread else 0]), coverage)
    return plots.svg(figure)


def _spreads(axes: Axes, sample: np.ndarray, names: Sequence[str]) -> None:
  true, predicted, kind = sample.T
  for number, color in zip(range(len(names)), _colors(names), strict=True):
    of_kind = kind == number
    axes.scatter(
      true[of_kind], predicted[of_kind], s=8, color=color, alpha=0.4, linewidths=0,
      rasterized=True,
    )  # fmt: skip
  ends = np.array([sample[:, :2].min(), sample[:, :2].max()]).clip(0.05)
  axes.plot(ends, ends, color=_GREY, linewidth=1, linestyle='--')
  axes.set_xscale('log')
  axes.set_yscale('log')
  for axis in (axes.xaxis, axes.yaxis):
    axis.set_major_formatter(FuncFormatter(lambda value, _: f'{value:g}'))
    axis.set_minor_formatter('')
  axes.set_xlabel('true σ of the side, px')
  axes.set_ylabel('predicted σ, px')
  axes.set_title('Spread of single sides')


def _mean_spreads(axes: Axes, table: np.ndarray, names: Sequence[str]) -> None:
  place = np.arange(len(names))
  axes.bar(place - 0.2, table[:, 2], 0.38, color=_PALE, edgecolor=_GREY, label='true')
  axes.bar(place + 0.2, table[:, 1], 0.38, color=_colors(names), label='predicted')
  # The names come with the data: no formulas in them.
  axes.set_xticks(place, names, parse_math=False)
  axes.set_ylabel('mean σ, px')
  axes.set_title('Mean spread: true (pale), predicted')


def _coverage(axes: Axes, coverage: Sequence[float | None]) -> None:
  place, shares = range(len(LEVELS)), np.array(coverage, float)
  axes.bar(place, shares, 0.5, color=_BLUE)
  for x, percent, share in zip(place, LEVELS, shares, strict=True):
    level = percent / 100
    axes.plot([x - 0.35, x + 0.35], [level, level], color=plots.INK, linewidth=1.5)
    axes.text(x, share / 2, f'{share:.0%}', color='white', ha='center', va='center')
  axes.set_xticks(place, [f'{level} %' for level in LEVELS])
  axes.set_ylim(0, 1.02)
  axes.set_xlabel('central interval (line: nominal)')
  axes.set_ylabel('share of annotated sides in it')
  axes.set_title('Coverage')


def _colors(names: Sequence[str]) -> list[str]:
  return [plots.SERIES[2:][i % 5] for i in range(len(names))]
