"""Parts of a report: images with detections, and the distributions of their sides."""

import html
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from gfl_jax.evaluation.diagnostic_rows import overlaps
from gfl_jax.reports import pictures, plots
from gfl_jax.reports.html_page import NOT_EVALUATED, paragraph, section

_MIN_SCORE = 0.3  # of a detection that is drawn
_NUM_AMBIGUOUS, _NUM_SHARP = 6, 3  # figures of edge distributions
_SAME_PLACE = 0.7  # IoU above which two detections would give the same figure


def sections(path: Path) -> list[str]:
  """The gallery and the edge distributions; path: of an evaluation's samples.npz."""
  title = 'Detections and ground truth'
  if not path.exists():
    return [section(title, paragraph(NOT_EVALUATED))]
  with np.load(path) as arrays:
    names = arrays['class_names'].tolist()
    samples = [
      {key.split('/')[1]: arrays[key] for key in arrays if key.startswith(f'{i}/')}
      for i in range(int(arrays['num_samples']))
    ]
  for sample in samples:
    sample['truths'] = _truths(sample)
  if not samples:
    return [section(title, paragraph('The evaluation set has no image with a box.'))]
  return [
    section(title, _gallery(samples, names)),
    section('Distributions of the sides', _edges(samples, names)),
  ]


def _truths(sample: Mapping) -> list[np.ndarray | None]:
  """Of each detection the true box [4] of the highest IoU, None if below 0.5."""
  boxes = sample['true_boxes']
  ious, _ = overlaps(sample['boxes'], boxes)
  return [boxes[row.argmax()] if row.max(initial=0) >= 0.5 else None for row in ious]


def _drawn(sample: Mapping) -> list[int]:
  """Indices of the detections that are drawn, best first."""
  return np.flatnonzero(sample['scores'] >= _MIN_SCORE).tolist()


def _distinct(sample: Mapping) -> list[int]:
  """`_drawn` without those at the place of a better one, of whatever class."""
  ious, _ = overlaps(sample['boxes'], sample['boxes'])
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
  note = paragraph(
    f'Detections with a score of at least {_MIN_SCORE} in the colour of their '
    'class; ground truth dashed. Point at a box for its name: images with more than '
    f'{pictures.MAX_LABELED} detections have no labels.'
  )
  return f'{note}<div class="photos">{"".join(figures)}</div>'


def _edges(samples: list, names: list[str]) -> str:
  ambiguous, sharp = _choose_edges(samples)
  has_spread = any(sample['edge_std'].any() for sample, _ in ambiguous)
  if not ambiguous:
    return paragraph(f'No detection scores {_MIN_SCORE} or more.')
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
  note = paragraph(
    'What the detector says about each side of a box: left and right along x, above '
    'the picture; top and bottom along y, beside it. A clear side gives a peak, an '
    'ambiguous one a broad hill with a large standard deviation σ. A curve that drops '
    'straight down is at the end of its grid of distances, mostly at the anchor point: '
    'no distance is below the first. Dashed: the ground truth; grey: beyond the image. '
    '“No object here”: no true box overlaps the detection by an IoU of 0.5.'
    f'{"" if has_spread else no_spread}'
  )
  return note + groups


def _edge_figure(sample: Mapping, index: int, names: list[str]) -> str:
  truth = sample['truths'][index]
  note = ' · no object here' if truth is None else ''
  return (
    f'<figure>{plots.edge_distributions(sample, index, truth)}<figcaption>'
    f'{html.escape(names[sample["classes"][index]])}, score '
    f'{sample["scores"][index]:.2f}, image {int(sample["image_id"])}{note}'
    '</figcaption></figure>'
  )


def _choose_edges(samples: list) -> list[list[tuple[Mapping, int]]]:
  """Detections to draw: those with one side far broader than another, and all sharp.

  Those that match a true box come first. At most two per image, and only the best of
  those at the same place.
  """
  pool = [(sample, index) for sample in samples for index in _distinct(sample)]

  def is_unmatched(entry) -> bool:
    sample, index = entry
    return sample['truths'][index] is None

  def in_bins(entry) -> np.ndarray:
    sample, index = entry
    return sample['edge_std'][index] / sample['strides'][index]

  by_contrast = sorted(pool, key=lambda e: (is_unmatched(e), -np.ptp(in_bins(e))))
  by_sharpness = sorted(pool, key=lambda e: (is_unmatched(e), in_bins(e).max()))
  groups: list[list[tuple[Mapping, int]]] = []
  for candidates, limit in ((by_contrast, _NUM_AMBIGUOUS), (by_sharpness, _NUM_SHARP)):
    group: list[tuple[Mapping, int]] = []
    groups.append(group)
    for sample, index in candidates:
      same_image = [i for chosen in groups for other, i in chosen if other is sample]
      if len(group) < limit and len(same_image) < 2 and index not in same_image:
        group.append((sample, index))
  return groups
