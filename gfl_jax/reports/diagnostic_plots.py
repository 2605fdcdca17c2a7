"""Figures of the diagnostics, as SVG elements; see evaluation/diagnostics.py."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

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
  share, width = counts / max(counts.sum(), 1), 1 / len(table)
  left = np.arange(len(table)) * width
  axes.bar(left, share, width, align='edge', color=_PALE, label='share of all')
  axes.plot([0, 1], [0, 1], color=_GREY, linewidth=1, linestyle='--')
  axes.plot(scores, ious, color=_BLUE, marker='o', markersize=4, label='detections')
  _unit_square(axes, 'score of a detection', 'mean IoU')
  axes.set_title('Is the score an IoU?')
  axes.legend(loc='upper left')


def _unit_square(axes: Axes, x_label: str, y_label: str) -> None:
  limits = (-0.02, 1.02)
  axes.set(xlim=limits, ylim=limits, xlabel=x_label, ylabel=y_label)


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
      colors = [plots.SERIES[2:][i % 5] for i in range(len(names))]
      _spreads(figure.add_subplot(grid[0]), arrays['spread_sample'], colors)
      axes = figure.add_subplot(grid[1])
      _mean_spreads(axes, arrays['kind_table'], names, colors)
    _coverage(figure.add_subplot(grid[2 if has_spread else 0]), coverage)
    return plots.svg(figure)


def _spreads(axes: Axes, sample: np.ndarray, colors: Sequence[str]) -> None:
  true, predicted, kind = sample.T
  for number, color in enumerate(colors):
    group = kind == number
    axes.scatter(
      true[group], predicted[group], s=8, color=color, alpha=0.4, linewidths=0,
      rasterized=True,
    )  # fmt: skip
  ends = np.array([sample[:, :2].min(), sample[:, :2].max()]).clip(0.05)
  axes.plot(ends, ends, color=_GREY, linewidth=1, linestyle='--')
  axes.set(xscale='log', yscale='log', title='Spread of single sides')
  axes.set(xlabel='true σ of the side, px', ylabel='predicted σ, px')
  for axis in (axes.xaxis, axes.yaxis):
    axis.set_major_formatter('{x:g}')
    axis.set_minor_formatter('')


def _mean_spreads(axes: Axes, table: np.ndarray, names, colors) -> None:
  place = np.arange(len(names))
  axes.bar(place - 0.2, table[:, 2], 0.38, color=_PALE, edgecolor=_GREY)
  axes.bar(place + 0.2, table[:, 1], 0.38, color=colors)
  # The names come with the data: no formulas in them.
  axes.set_xticks(place, names, parse_math=False)
  axes.set(ylabel='mean σ, px', title='Mean spread: true (pale), predicted')


def _coverage(axes: Axes, coverage: Sequence[float | None]) -> None:
  place, shares = range(len(LEVELS)), np.array(coverage, float)
  axes.bar(place, shares, 0.5, color=_BLUE)
  for x, percent, share in zip(place, LEVELS, shares, strict=True):
    axes.plot([x - 0.35, x + 0.35], [percent / 100] * 2, color=plots.INK, linewidth=1.5)
    axes.text(x, share / 2, f'{share:.0%}', color='white', ha='center', va='center')
  axes.set_xticks(place, [f'{level} %' for level in LEVELS])
  axes.set(ylim=(0, 1.02), title='Coverage')
  axes.set(xlabel='central interval (line: nominal)')
  axes.set(ylabel='share of annotated sides in it')
