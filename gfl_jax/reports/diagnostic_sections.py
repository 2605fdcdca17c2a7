"""Parts of a report: whether the score is the quality, and whether the distributions of
sides mean anything. See evaluation/diagnostics.py for the measures."""

import importlib.resources
import itertools
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gfl_jax.evaluation.diagnostics import LEVELS
from gfl_jax.models.scores import SCORES
from gfl_jax.reports import markup, plots
from gfl_jax.reports.markup import Table, number, paragraph, section, wide

_BLUE, _RED = plots.SERIES[:2]
_CANDIDATES = {'true negatives': _RED, 'true positives': _BLUE}
_GREY, _PALE = '#9ca3af', '#eef0f3'
_TITLES = ('Is the score the quality?', 'Do the distributions mean anything?')
# Also measured for each kind of sides: 'side_crps_sharp', ...
PER_KIND = ('spread_ratio', 'side_crps', 'side_nll')
# {group: {diagnostic: its meaning, good values, short name}}
MEASURES: dict[str, dict[str, dict[str, str]]] = tomllib.loads(
  importlib.resources.files('gfl_jax.reports').joinpath('measures.toml').read_text()
)


def sections(metrics: Mapping, path: Path, config: Mapping) -> list[str]:
  """Both parts.

  Args:
    metrics: of the evaluation; empty if there is none yet.
    path: of its diagnostics.npz.
    config: the run's.
  """
  if 'diagnostics' not in metrics or not path.exists():
    return [section(title, paragraph(markup.NOT_EVALUATED)) for title in _TITLES]
  scalars = metrics['diagnostics']
  with np.load(path) as file:
    arrays = dict(file)
  return [
    section(_TITLES[0], *_scores(scalars, arrays, config['score']['kind'])),
    section(_TITLES[1], *_sides(scalars, arrays, config['box']['kind'])),
  ]


def _scores(scalars: Mapping, arrays: Mapping, kind: str) -> list[str]:
  if not len(arrays['sample']) and not arrays['reliability'][:, 0].any():
    return [paragraph('There is no candidate.')]
  note = (
    f'Score: {kind}. Candidates before suppression: {scalars["true_positives"]:,.0f} '
    'true positives (IoU of at least 0.5 with a true box of the class) and '
    f'{scalars["true_negatives"]:,.0f} true negatives (IoU below 0.1 with every true '
    'box). A score that is the quality puts every negative below every positive and '
    'orders the positives by their IoU. The figure shows a sample with as many '
    'negatives as positives, where there are enough.'
  )
  rows = MEASURES['score']
  if SCORES[kind].use != 'branch':  # the class score is the final score
    rows = {name: row for name, row in rows.items() if 'class_score' not in name}
  parts = [paragraph(note), wide(_score_figure(arrays)), _table(scalars, rows)]
  if scalars['true_positives']:
    iou, centerness = (
      f'{number(scalars[f"{label}_mean"], 2)} ± {number(scalars[f"{label}_std"], 2)}'
      for label in ('positive_iou', 'positive_centerness')
    )
    parts.append(
      paragraph(
        f'The true positives have an IoU of {iou} with their true box, and their '
        f'anchor points a centerness of {centerness} in it (mean ± standard '
        'deviation). These candidates turned out well; “Training” has the positives '
        "that were assigned, beside the paper's."
      )
    )
  return parts


def _sides(scalars: Mapping, arrays: Mapping, kind: str) -> list[str]:
  if not scalars['matched_detections']:
    return [paragraph('No detection matches a true box.')]
  note = (
    f'Box: {kind}. The sides of {scalars["matched_detections"]:,.0f} detections that '
    'match a true box (IoU of at least 0.5, score of at least 0.05): how well the '
    'distributions predict the annotated sides. A correct one has the annotation in '
    'its central 80 % interval in 80 % of the cases.'
  )
  coverage = [scalars[f'coverage_{level}'] for level in LEVELS]
  parts = [paragraph(note), wide(_spread_figure(arrays, coverage))]
  if len(arrays['edge_kinds']):
    parts.append(_kinds(scalars, arrays))
  return [*parts, _table(scalars, MEASURES['sides'])]


def _table(scalars: Mapping, measures: Mapping[str, Mapping]) -> str:
  rows = [
    [name, number(scalars[name]), measure['meaning']]
    for name, measure in measures.items()
    if scalars[name] is not None
  ]
  return Table('lrl', ['measure', 'value', 'meaning'], rows).as_html()


def _kinds(scalars: Mapping, arrays: Mapping) -> str:
  head = ['sides', 'count', 'true σ px', 'predicted σ px', 'predicted / true']
  head += ['CRPS px', 'NLL', *(f'in {level} %' for level in LEVELS)]
  rows = []
  for name, values in zip(arrays['edge_kinds'], arrays['kind_table'], strict=True):
    count, predicted, true, *coverage = values.tolist()
    measures = [scalars[f'{measure}_{name}'] for measure in PER_KIND]
    figures = [true, predicted, *measures, *coverage]
    rows.append([str(name), f'{count:.0f}', *(number(x, 2) for x in figures)])
  return Table('l' + 'r' * (len(head) - 1), head, rows).as_html()


def _score_figure(arrays: Mapping) -> str:
  """Scores of true positives and negatives, and the reliability of the score.

  With a quality branch, the first panel is the class score against the quality.
  """
  class_score, quality, score, iou, positive = arrays['sample'].T
  has_branch = np.isfinite(quality).any()
  with plots.style():
    figure = Figure(figsize=(11, 3.8), layout='constrained')
    panels = figure.subplots(1, 2 + has_branch, squeeze=False)[0]
    if has_branch:
      _scatter(panels[0], class_score, quality, positive, _CANDIDATES)
      _unit_square(panels[0], 'class score', 'quality')
      panels[0].set_title('Two scores of a candidate')
    _scatter(panels[-2], score, iou, positive, _CANDIDATES)
    _unit_square(panels[-2], 'final score', 'IoU with the true box')
    panels[-2].set_title('Final score and IoU')
    panels[-2].legend(loc='lower right', frameon=True, framealpha=0.8)
    _reliability(panels[-1], arrays['reliability'])
    return plots.svg(figure)


def _scatter(axes: Axes, x, y, kind, colors: Mapping[str, str]) -> None:
  """Dots of a color for each kind 0, 1, ...; colors: {label: color}."""
  dots = {'s': 7, 'alpha': 0.35, 'linewidths': 0, 'rasterized': True}
  for i, (label, color) in enumerate(colors.items()):
    axes.scatter(x[kind == i], y[kind == i], color=color, label=label, **dots)


def _reliability(axes: Axes, table: np.ndarray) -> None:
  counts, scores, ious = table.T
  share, width = counts / max(counts.sum(), 1), 1 / len(table)
  left = np.arange(len(table)) * width
  axes.bar(left, share, width, align='edge', color=_PALE, label='share of all')
  axes.plot([0, 1], [0, 1], color=_GREY, linewidth=1, linestyle='--')
  axes.plot(scores, ious, color=_BLUE, marker='o', label='detections')
  _unit_square(axes, 'score of a detection', 'mean IoU')
  axes.set_title('Is the score an IoU?')
  axes.legend(loc='upper left')


def _unit_square(axes: Axes, x_label: str, y_label: str) -> None:
  limits = (-0.02, 1.02)
  axes.set(xlim=limits, ylim=limits, xlabel=x_label, ylabel=y_label)


def _spread_figure(arrays: Mapping, coverage: Sequence[float | None]) -> str:
  """Coverage at `LEVELS` and, where the true spread is known, the spreads."""
  names = arrays['edge_kinds'].tolist()
  has_spread = bool(names) and len(arrays['spread_sample']) > 0
  with plots.style():
    figure = Figure(figsize=(11, 3.8), layout='constrained')
    grid = figure.add_gridspec(1, 3)
    if has_spread:
      colors = dict(zip(names, itertools.cycle(plots.SERIES[2:]), strict=False))
      _spreads(figure.add_subplot(grid[0]), arrays['spread_sample'], colors)
      _mean_spreads(figure.add_subplot(grid[1]), arrays['kind_table'], colors)
    _coverage(figure.add_subplot(grid[2 if has_spread else 0]), coverage)
    return plots.svg(figure)


def _spreads(axes: Axes, sample: np.ndarray, colors: Mapping[str, str]) -> None:
  true, predicted, kind = sample.T
  _scatter(axes, true, predicted, kind, colors)
  ends = np.array([sample[:, :2].min(), sample[:, :2].max()]).clip(0.05)
  axes.plot(ends, ends, color=_GREY, linewidth=1, linestyle='--')
  axes.set(xscale='log', yscale='log', title='Spread of single sides')
  axes.set(xlabel='true σ of the side, px', ylabel='predicted σ, px')
  for axis in (axes.xaxis, axes.yaxis):
    axis.set_major_formatter('{x:g}')
    axis.set_minor_formatter('')


def _mean_spreads(axes: Axes, table: np.ndarray, colors: Mapping[str, str]) -> None:
  place = np.arange(len(colors))
  axes.bar(place - 0.2, table[:, 2], 0.38, color=_PALE, edgecolor=_GREY)
  axes.bar(place + 0.2, table[:, 1], 0.38, color=list(colors.values()))
  # The names come with the data: no formulas in them.
  axes.set_xticks(place, list(colors), parse_math=False)
  axes.set(ylabel='mean σ, px', title='Mean spread: true (pale), predicted')


def _coverage(axes: Axes, coverage: Sequence[float | None]) -> None:
  place, shares = range(len(LEVELS)), np.array(coverage, float)
  axes.bar(place, shares, 0.5, color=_BLUE)
  for x, percent, share in zip(place, LEVELS, shares, strict=True):
    axes.plot([x - 0.35, x + 0.35], [percent / 100] * 2, color=plots.INK, linewidth=1.5)
    axes.text(x, share / 2, f'{share:.0%}', color='white', ha='center', va='center')
  axes.set_xticks(place, [f'{level} %' for level in LEVELS])
  axes.set(ylim=(0, 1.02), title='Coverage', ylabel='share of annotated sides in it')
  axes.set(xlabel='central interval (line: nominal)')
