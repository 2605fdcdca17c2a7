"""Parts of a report: images with detections, and the distributions of their sides."""

import html
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from gfl_jax.ops import boxes as box_ops
from gfl_jax.reports import pictures, plots
from gfl_jax.reports.html_page import section

_MIN_SCORE = 0.3  # of a detection that is drawn
_NUM_AMBIGUOUS, _NUM_SHARP = 6, 3  # figures of edge distributions
_SAME_PLACE = 0.7  # IoU above which two detections would give the same figure


def sections(path: Path) -> list[str]:
  """The gallery and the edge distributions; path: of an evaluation's samples.npz."""
  title = 'Detections and ground truth'
  if not path.exists():
    return [section(title, '<p>Not evaluated yet.</p>')]
  with np.load(path) as arrays:
    names = arrays['class_names'].tolist()
    samples = [
      {key.split('/')[1]: arrays[key] for key in arrays if key.startswith(f'{i}/')}
      for i in range(int(arrays['num_samples']))
    ]
  if not samples:
    return [section(title, '<p>The evaluation set has no image with a box.</p>')]
  return [
    section(title, _gallery(samples, names)),
    section('Distributions of the sides', _edges(samples, names)),
  ]


def _drawn(sample: Mapping) -> list[int]:
  """Indices of the detections that are drawn, best first."""
  return np.flatnonzero(sample['scores'] >= _MIN_SCORE).tolist()


def _distinct(sample: Mapping) -> list[int]:
  """`_drawn` without those at the place of a better one, of whatever class."""
  ious = np.asarray(box_ops.iou_matrix(sample['boxes'], sample['boxes']))
  kept: list[int] = []
  for index in _drawn(sample):
    if not (ious[index, kept] > _SAME_PLACE).any():
      kept.append(index)
  return kept


def _gallery(samples: list, names: list[str]) -> str:
  figures = []
  for sample in samples:
    drawn = _drawn(sample)
    figures.append(
      f'<figure>{pictures.annotated_image(sample, names, drawn)}<figcaption>Image '
      f'{int(sample["image_id"])} · true boxes {len(sample["true_boxes"])}, detected '
      f'{len(drawn)}</figcaption></figure>'
    )
  return (
    f'<p>Detections with a score of at least {_MIN_SCORE} in the colour of their '
    'class; ground truth dashed. Point at a box for its name: images with more than '
    f'{pictures.MAX_LABELED} detections have no labels.</p>'
    f'<div class="photos">{"".join(figures)}</div>'
  )


def _edges(samples: list, names: list[str]) -> str:
  ambiguous, sharp = _choose_edges(samples)
  has_spread = any(sample['edge_std'].any() for sample, _ in ambiguous)
  if not ambiguous:
    return f'<p>No detection scores {_MIN_SCORE} or more.</p>'
  headings = ('Most ambiguous', 'Sharpest') if has_spread else ('Examples', 'More')
  no_spread = (
    ' Lines of full height: this representation knows one place for a side and no '
    'distribution.'
  )
  groups = ''.join(
    f'<h3>{heading}</h3><div class="edges">'
    f'{"".join(_edge_figure(*entry, names) for entry in chosen)}</div>'
    for heading, chosen in zip(headings, (ambiguous, sharp), strict=True)
    if chosen
  )
  return (
    '<p>What the detector says about each side of a box: left and right along x, above '
    'the picture; top and bottom along y, beside it. A clear side gives a peak, an '
    'ambiguous one a broad hill with a large standard deviation σ. A curve that drops '
    'straight down is at the end of its grid of distances, mostly at the anchor point: '
    'no distance is below the first. Dashed: the ground truth; grey: beyond the image. '
    '“No object here”: no true box overlaps the detection by an IoU of 0.5.'
    f'{"" if has_spread else no_spread}</p>{groups}'
  )


def _edge_figure(sample: Mapping, index: int, names: list[str]) -> str:
  note = '' if _is_matched(sample, index) else ' · no object here'
  return (
    f'<figure>{plots.edge_distributions(sample, index)}<figcaption>'
    f'{html.escape(names[sample["classes"][index]])}, score '
    f'{sample["scores"][index]:.2f}, image {int(sample["image_id"])}{note}'
    '</figcaption></figure>'
  )


def _is_matched(sample: Mapping, index: int) -> bool:
  truth = plots.matching_truth(sample['boxes'][index], sample['true_boxes'])
  return truth is not None


def _choose_edges(samples: list) -> list[list[tuple[Mapping, int]]]:
  """Detections to draw: those with one side far broader than another, and all sharp.

  Those that match a true box come first. At most two per image, and only the best of
  those at the same place.
  """
  pool = [(sample, index) for sample in samples for index in _distinct(sample)]

  def in_bins(entry) -> np.ndarray:
    sample, index = entry
    return sample['edge_std'][index] / sample['strides'][index]

  by_contrast = sorted(pool, key=lambda e: (not _is_matched(*e), -np.ptp(in_bins(e))))
  by_sharpness = sorted(pool, key=lambda e: (not _is_matched(*e), in_bins(e).max()))
  groups: list[list[tuple[Mapping, int]]] = []
  for candidates, limit in ((by_contrast, _NUM_AMBIGUOUS), (by_sharpness, _NUM_SHARP)):
    group: list[tuple[Mapping, int]] = []
    groups.append(group)
    for sample, index in candidates:
      same_image = [i for chosen in groups for other, i in chosen if other is sample]
      if len(group) < limit and len(same_image) < 2 and index not in same_image:
        group.append((sample, index))
  return groups
