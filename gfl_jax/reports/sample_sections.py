"""Parts of a report: images with detections, and the distributions of their sides."""

import html
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from gfl_jax.evaluation.diagnostic_rows import overlaps
from gfl_jax.reports import plots
from gfl_jax.reports.markup import NOT_EVALUATED, figure, paragraph, section

_MIN_SCORE = 0.3  # of a detection that is drawn
_MAX_LABELED = 10  # detections of a picture; more labels would cover it
_WIDTH, _FONT = 420, 12  # of a picture, CSS px
_NUM_AMBIGUOUS, _NUM_SHARP = 6, 3  # figures of side distributions
_SAME_PLACE = 0.7  # IoU above which two detections would give the same figure


def sections(path: Path) -> list[str]:
  """The gallery and the side distributions; path: of an evaluation's samples.npz."""
  title = 'Detections and ground truth'
  if not path.exists():
    return [section(title, paragraph(NOT_EVALUATED))]
  with np.load(path) as arrays:
    names = arrays['class_names'].tolist()
    samples = [
      {key.split('/')[1]: arrays[key] for key in arrays if key.startswith(f'{i}/')}
      for i in range(int(arrays['num_samples']))
    ]
  if not samples:
    return [section(title, paragraph('The evaluation set has no image with a box.'))]
  for sample in samples:
    ious, _ = overlaps(sample['boxes'], sample['true_boxes'])
    # Of each detection the true box [4] of the highest IoU, None if below 0.5.
    sample['truths'] = [
      sample['true_boxes'][row.argmax()] if row.max(initial=0) >= 0.5 else None
      for row in ious
    ]
    # The detections that are drawn, best first.
    sample['drawn'] = np.flatnonzero(sample['scores'] >= _MIN_SCORE).tolist()
  return [
    section(title, _gallery(samples, names)),
    section('Distributions of the sides', _sides(samples, names)),
  ]


def _gallery(samples: list, names: list[str]) -> str:
  figures = ''
  for sample in samples:
    drawn, num_true = sample['drawn'], len(sample['true_boxes'])
    caption = f'true boxes {num_true}, detected {len(drawn)}'
    caption = f'Image {int(sample["image_id"])} · {caption}'
    figures += figure(annotated_image(sample, names, drawn), caption)
  note = paragraph(
    f'Detections with a score of at least {_MIN_SCORE} in the color of their class; '
    'ground truth dashed. Point at a box for its name: images with more than '
    f'{_MAX_LABELED} detections have no labels.'
  )
  return f'{note}<div class="photos">{figures}</div>'


def annotated_image(sample: Mapping, class_names: Sequence[str], kept) -> str:
  """An image with detections (solid, colored by class) and ground truth (dashed).

  Args:
    sample: 'image' uint8 [h, w, 3], and in px of it 'boxes', 'classes', 'scores',
      'true_boxes'.
    class_names: names of class 0, 1, ...; any characters.
    kept: indices of the detections to draw, best first. All get their name and score
      as the text that pointing at them shows; up to ten, also as a label.

  Returns:
    An SVG element that scales with the page.
  """
  image = Image.fromarray(sample['image'])
  zoom = _WIDTH / image.width
  height = image.height * zoom
  shapes, labels, taken = [], [], []
  for box in (sample['true_boxes'] * zoom).tolist():
    # A white line below the dashes keeps them visible on any background.
    shapes.append(_rectangle(box, 'white', 2.6))
    shapes.append(_rectangle(box, plots.TRUTH, 1.4, dash='5 4'))
  for index in kept:
    label = int(sample['classes'][index])
    # Neighbouring classes are far apart on the color wheel.
    color = f'hsl({(210 + 137.508 * label) % 360:.0f} 75% 42%)'
    box = (sample['boxes'][index] * zoom).tolist()
    text = f'{class_names[label]} {sample["scores"][index]:.2f}'
    shapes.append(_rectangle(box, color, 2, title=text))
    if len(kept) <= _MAX_LABELED:
      labels.append(_label(box, text, color, height, taken))
  image.thumbnail((2 * _WIDTH, 2 * _WIDTH))
  file = io.BytesIO()
  image.save(file, format='jpeg', quality=85)
  return (
    f'<svg viewBox="0 0 {_WIDTH} {height:.1f}" role="img">'
    f'<image href="{plots.data_uri("image/jpeg", file.getvalue())}" width="{_WIDTH}" '
    f'height="{height:.1f}"/>{"".join(shapes + labels)}</svg>'
  )


def _rectangle(box, color: str, width: float, *, dash='none', title='') -> str:
  x1, y1, x2, y2 = box
  return (
    f'<rect x="{x1:.1f}" y="{y1:.1f}" width="{x2 - x1:.1f}" height="{y2 - y1:.1f}" '
    f'fill="transparent" stroke="{color}" stroke-width="{width}" '
    f'stroke-dasharray="{dash}"><title>{html.escape(title)}</title></rect>'
  )


def _label(box, text: str, color: str, height: float, taken: list) -> str:
  """A label at a box, where it covers none of those taken; '' if there is no room."""
  width, tall = 0.62 * _FONT * len(text) + 6, _FONT + 4
  x = min(max(box[0] - 1, 0), max(_WIDTH - width, 0))
  for y in (box[1] - tall, box[1], box[3] - tall, box[3]):
    if 0 <= y <= height - tall and not any(
      x < x2 and x1 < x + width and y < y2 and y1 < y + tall for x1, y1, x2, y2 in taken
    ):
      taken.append((x, y, x + width, y + tall))
      return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{tall:.1f}" '
        f'fill="{color}" rx="2"/><text x="{x + 3:.1f}" y="{y + tall - 4:.1f}" '
        f'fill="white" font-size="{_FONT}">{html.escape(text)}</text>'
      )
  return ''


def _sides(samples: list, names: list[str]) -> str:
  ambiguous, sharp = _choose(samples)
  if not ambiguous:
    return paragraph(f'No detection scores {_MIN_SCORE} or more.')
  has_spread = any(sample['edge_std'].any() for sample, _ in ambiguous)
  headings = ('Most ambiguous', 'Sharpest') if has_spread else ('Examples', 'More')
  text = (
    'What the detector says about each side of a box: left and right along x, above '
    'the picture; top and bottom along y, beside it. A clear side gives a peak, an '
    'ambiguous one a broad hill with a large standard deviation σ. A curve that drops '
    'straight down is at the end of its grid of distances, mostly at the anchor point, '
    'where the smallest distance ends. Dashed: the ground truth; gray: beyond the '
    'image. “No object here”: no true box overlaps the detection by an IoU of 0.5.'
  )
  if not has_spread:
    text += ' Lines of full height: this box kind predicts a place, no distribution.'
  groups = [paragraph(text)]
  for heading, chosen in zip(headings, (ambiguous, sharp), strict=True):
    if chosen:
      figures = ''.join(_side_figure(*entry, names) for entry in chosen)
      groups.append(f'<h3>{heading}</h3><div class="sides">{figures}</div>')
  return ''.join(groups)


def _side_figure(sample: Mapping, index: int, names: list[str]) -> str:
  truth, name = sample['truths'][index], names[sample['classes'][index]]
  note = ' · no object here' if truth is None else ''
  score, image = sample['scores'][index], int(sample['image_id'])
  caption = f'{name}, score {score:.2f}, image {image}{note}'
  return figure(plots.side_distributions(sample, index, truth), caption)


def _choose(samples: list) -> list[list[tuple[Mapping, int]]]:
  """Detections to draw: those with one side far broader than another, and all sharp.

  Those that match a true box come first. At most two per image, and only the best of
  those at the same place.
  """
  pool = []  # (whether it matches no true box, std of its sides in strides, which)
  for sample in samples:
    ious, _ = overlaps(sample['boxes'], sample['boxes'])
    kept: list[int] = []
    for index in sample['drawn']:
      if not (ious[index, kept] > _SAME_PLACE).any():
        kept.append(index)
        std = sample['edge_std'][index] / sample['strides'][index]
        pool.append((sample['truths'][index] is None, std, (sample, index)))
  by_contrast = sorted(pool, key=lambda entry: (entry[0], -np.ptp(entry[1])))
  by_sharpness = sorted(pool, key=lambda entry: (entry[0], entry[1].max()))
  groups: list[list[tuple[Mapping, int]]] = [[], []]
  limits, orders = (_NUM_AMBIGUOUS, _NUM_SHARP), (by_contrast, by_sharpness)
  for group, limit, candidates in zip(groups, limits, orders, strict=True):
    for _, _, (sample, index) in candidates:
      same_image = [i for other, i in groups[0] + groups[1] if other is sample]
      if len(group) < limit and len(same_image) < 2 and index not in same_image:
        group.append((sample, index))
  return groups
