"""Draws the figures of docs/what_is_gfl.md and prints the tables that the page quotes.

  python docs/figures.py

Writes docs/qfl.png and docs/dfl.png. Settings are those of
configs/gfl_r50_fpn_1x_coco.py, the paper's AP those of configs/ablations/beta.py.
"""

import io
import json
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from configs import gfl_r50_fpn_1x_coco
from configs.ablations import beta as beta_study
from gfl_jax.models import detector
from gfl_jax.models.representations import bin_grid
from gfl_jax.ops import assignment, boxes, distributions, losses
from gfl_jax.reports import plots

FOLDER = pathlib.Path(__file__).resolve().parent
ROOT = FOLDER.parent
BETAS = [float(name) for name in beta_study.ROWS]
QUALITY = 0.7  # the soft label of QFL's figure
TARGET = 6.3  # the true distance of DFL's figure, in strides
# Bins and strides of other detectors' released configs.
DETECTORS = {
  'GFL, `reg_max=16`': (distributions.BinGrid(0, 16, 17), (8, 16, 32, 64, 128)),
  'YOLOv8, YOLO11, `reg_max=16`': (distributions.BinGrid(0, 15, 16), (8, 16, 32)),
  'NanoDet-Plus, `reg_max=7`': (distributions.BinGrid(0, 7, 8), (8, 16, 32, 64)),
}
# Width and height in px of the boxes whose assignment is shown.
BOX_SIZES = [(800, 800), (1333, 800), (800, 100), (1200, 100), (1200, 30)]


def qfl(p, quality: float, beta: float) -> np.ndarray:
  """Quality focal loss at probabilities p [n]."""
  p = np.asarray(p, np.float32)
  logits = jnp.log(p / (1 - p))
  return np.asarray(
    losses.quality_focal_loss(logits, jnp.full(p.shape, quality), beta=beta)
  )


def side_distributions(grid: distributions.BinGrid) -> dict[str, jax.Array]:
  """Bin logits of three answers to one target; all three have its distance as mean."""
  normal = lambda mean, std: -0.5 * jnp.square((grid.values - mean) / std)
  near, far = 4.0, 9.0
  share = (far - TARGET) / (far - near)  # of the near place
  return {
    'the two bins of the target': jnp.log(
      jnp.maximum(1 - jnp.abs(grid.values - TARGET), 1e-9)
    ),
    'sharp side': normal(TARGET, 0.6),
    'ambiguous side': jnp.logaddexp(
      normal(near, 0.8) + np.log(share), normal(far, 0.8) + np.log(1 - share)
    ),
  }


def beta_table(config) -> str:
  """What beta does to a positive and to the background, and the paper's AP."""
  points = detector.canvas_points(config, config.data.canvas)
  count = len(points.centers) * config.model.num_classes
  prior = config.model.head.prior_probability
  rows = []
  for row, beta in zip(beta_study.ROWS.values(), BETAS, strict=True):
    at = qfl([QUALITY, QUALITY - 0.1, 0.1], QUALITY, beta)
    background = count * qfl([prior], 0.0, beta)[0]
    rows.append([f'{beta:g}', *map(_short, at), _short(background), row.paper[0]])
  names = [f'p = {p:.1f}' for p in (QUALITY, QUALITY - 0.1, 0.1)]
  background = f'{count:,} background scores at p = {prior}'
  return _table(['beta', *names, background, 'AP (paper)'], rows)


def sides_table(grid: distributions.BinGrid) -> str:
  """Mean, spread and loss of the three answers to one target."""
  rows = []
  for name, logits in side_distributions(grid).items():
    mean, std = _mean_and_std(logits, grid)
    loss = losses.distribution_focal_loss(logits, jnp.asarray(TARGET), grid)
    rows.append([name, f'{mean:.2f}', f'{std:.2f}', f'{loss:.2f}'])
  return _table(['answer', 'expectation (strides)', 'std (strides)', 'DFL'], rows)


def reach_table(config) -> str:
  """How far the bins reach on each level of a config's pyramid, in px."""
  grid = bin_grid(config.box)
  strides = np.unique(detector.canvas_points(config, config.data.canvas).strides)
  in_strides = (1, grid.width, grid.stop, grid.width / 2)
  rows = [
    [f'P{np.log2(stride):.0f}', *(f'{x * stride:g}' for x in in_strides)]
    for stride in strides
  ]
  names = ['stride', 'bin width', 'reach per side', "grid's own std, at most"]
  return _table(['level', *(f'{name} (px)' for name in names)], rows)


def detectors_table() -> str:
  """The grids of DETECTORS and how far they reach, in px of the network input."""
  rows = []
  for name, (grid, strides) in DETECTORS.items():
    values = f'{grid.start:g}, {grid.start + grid.width:g}, ..., {grid.stop:g}'
    reach = grid.stop * strides[-1]
    levels = f'{strides[0]} to {strides[-1]}'
    rows.append([name, grid.num_bins, values, levels, f'{reach:g}', f'{2 * reach:g}'])
  names = ['strides (px)', 'reach per side (px)', 'widest box (px)']
  return _table(['detector', 'bins', 'their values (strides)', *names], rows)


def spread_table() -> str:
  """How the demo's predicted spreads compare with the true ones, of its kept result."""
  metrics = json.loads((ROOT / 'results/demo_shapes/metrics.json').read_text())
  diagnostics = metrics['diagnostics']
  kinds = ['blurred', 'faded', 'occluded', 'sharp']
  values = [diagnostics[f'spread_ratio_{kind}'] for kind in kinds]
  values.append(diagnostics['spread_correlation_relative'])
  kinds[0] = f'mean predicted / mean true std: {kinds[0]}'
  names = [*kinds, 'rank correlation, all but sharp']
  return _table(names, [[f'{x:.2f}' for x in values]])


def assignment_table(config) -> str:
  """Which levels learn boxes of several shapes, and how far their sides are."""
  grid = bin_grid(config.box)
  height, width = config.data.canvas
  points = detector.canvas_points(config, config.data.canvas)
  assign = jax.jit(
    jax.vmap(lambda box: assignment.atss(box[None], jnp.array([True]), points).matched)
  )
  corners = np.random.default_rng(0).uniform(size=(32, 2))  # places in the canvas
  rows = []
  for size in BOX_SIZES:
    start = corners * (np.array([width, height]) - size)
    placed = np.concatenate([start, start + size], axis=1).astype(np.float32)
    box, anchor = np.nonzero(np.asarray(assign(placed)) == 0)
    strides = points.strides[anchor]
    distances = boxes.boxes_to_distances(points.centers[anchor], placed[box])
    distances /= strides[:, None]
    beyond = np.mean(distances != distributions.clamp_targets(distances, grid))
    levels = ', '.join(f'P{np.log2(stride):.0f}' for stride in np.unique(strides))
    rows.append(
      [f'{size[0]} x {size[1]}', levels, f'{distances.max():.1f}', f'{beyond:.0%}']
    )
  return _table(
    ['box (px)', 'levels', 'farthest side (strides)', 'sides beyond the bins'], rows
  )


def draw_qfl(path: pathlib.Path) -> None:
  """Loss against p for several beta, at a soft label and at background."""
  p = np.linspace(0.002, 0.998, 499)
  with plots.style():
    figure = Figure(figsize=(9, 3.6), layout='constrained')
    positive, background = figure.subplots(1, 2)
    for beta, color in zip(BETAS, plots.SERIES, strict=False):
      label = f'beta = {beta:g}' + (' (plain BCE)' if beta == 0 else '')
      width = 2.6 if beta == 2 else 1.4
      for axes, quality in ((positive, QUALITY), (background, 0.0)):
        axes.plot(p, qfl(p, quality, beta), color=color, label=label, linewidth=width)
    positive.axvline(QUALITY, color=plots.INK, linewidth=0.8, linestyle=':')
    positive.set(ylim=(0, 2), title=f'Positive: label y = IoU = {QUALITY}')
    background.set(
      yscale='log', ylim=(1e-6, 10), title='Background: label y = 0 (log scale)'
    )
    for axes in (positive, background):
      axes.set(xlim=(0, 1), xlabel='predicted score p', ylabel='loss (nats)')
    positive.legend(loc='upper center')
    _save(figure, path)


def draw_dfl(path: pathlib.Path, grid: distributions.BinGrid) -> None:
  """One target, its two bins, and two predictions that have it as their mean."""
  target, *predictions = (
    (name, logits, np.asarray(jax.nn.softmax(logits)))
    for name, logits in side_distributions(grid).items()
  )
  two = target[2] > 1e-6
  blue, red = plots.SERIES[:2]
  with plots.style():
    figure = Figure(figsize=(9, 3.6), layout='constrained')
    panels = figure.subplots(1, 2, sharey=True)
    for axes, (name, logits, p) in zip(panels, predictions, strict=True):
      mean, std = _mean_and_std(logits, grid)
      axes.axvspan(mean - std, mean + std, color=blue, alpha=0.1, linewidth=0)
      axes.bar(grid.values, p, 0.8, color=blue, alpha=0.75, label='predicted')
      axes.bar(
        grid.values[two], target[2][two], 0.8, fill=False, edgecolor=red,
        linewidth=1.8, label=f'target of a side at {TARGET}',
      )  # fmt: skip
      axes.axvline(
        mean, color=plots.INK, linestyle='--', label='expectation; shaded: ± std'
      )
      axes.set(xticks=grid.values, xlim=(grid.start - 0.6, grid.stop + 0.6))
      axes.set_xlabel('distance from the point to the side (strides)')
      axes.set_title(f'{name.capitalize()}: {mean:.1f} ± {std:.1f} strides')
    panels[0].set_ylabel('probability of a bin')
    panels[1].legend(loc='upper right')
    _save(figure, path)


def tables() -> dict[str, str]:
  """The tables of the page in Markdown, by what they show."""
  config = gfl_r50_fpn_1x_coco.get_config()
  return {
    'QFL': beta_table(config),
    'DFL': sides_table(bin_grid(config.box)),
    'Reach of the bins': reach_table(config),
    'Boxes that ATSS assigns': assignment_table(config),
    'Spread': spread_table(),
    'Detectors': detectors_table(),
  }


def main() -> None:
  """Draws and prints."""
  draw_qfl(FOLDER / 'qfl.png')
  draw_dfl(FOLDER / 'dfl.png', bin_grid(gfl_r50_fpn_1x_coco.get_config().box))
  for title, table in tables().items():
    print(f'{title}\n\n{table}\n')


def _mean_and_std(logits, grid):
  variance = distributions.variance(logits, grid)
  return float(distributions.expectation(logits, grid)), float(jnp.sqrt(variance))


def _save(figure: Figure, path: pathlib.Path) -> None:
  """Writes a PNG of few colors, which is a fourth of the size."""
  FigureCanvasAgg(figure)
  file = io.BytesIO()
  figure.savefig(file, dpi=110)
  Image.open(file).convert('RGB').quantize(64).save(path, optimize=True)


def _short(number: float) -> str:
  if number >= 100:
    return f'{number:,.0f}'
  # Rounding makes the float32 zero of any processor a plain 0.
  return np.format_float_positional(round(number, 7), 2, fractional=False, trim='-')


def _table(names: list[str], rows: list[list]) -> str:
  lines = [names, ['---', *['--:'] * (len(names) - 1)], *rows]
  return '\n'.join(f'| {" | ".join(map(str, line))} |' for line in lines)


if __name__ == '__main__':
  main()
