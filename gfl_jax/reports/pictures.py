"""Photographs of a report with boxes drawn over them, as SVG elements."""

import base64
import html
import io
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

_WIDTH, _FONT = 420, 12  # of a picture, CSS px
TRUTH = '#111827'  # the colour of true boxes, dashed
MAX_LABELED = 10  # detections of a picture; the labels of more would cover it


def class_color(index: int) -> str:
  """A CSS colour; neighbouring classes are far apart on the colour wheel."""
  return f'hsl({(210 + 137.508 * index) % 360:.0f} 75% 42%)'


def annotated_image(sample: Mapping, class_names: Sequence[str], kept) -> str:
  """An image with detections (solid, coloured by class) and ground truth (dashed).

  Args:
    sample: 'image' uint8 [h, w, 3], and in px of it 'boxes', 'classes', 'scores',
      'true_boxes'.
    class_names: names of class 0, 1, ...; any characters.
    kept: indices of the detections to draw, best first. Up to `MAX_LABELED` get their
      name and score as a label, all get it as the text that pointing at them shows.

  Returns:
    An SVG element that scales with the page.
  """
  height, width = sample['image'].shape[:2]
  zoom = _WIDTH / width
  shapes, labels, taken = [], [], []
  for box in (sample['true_boxes'] * zoom).tolist():
    # A white line below the dashes keeps them visible on any background.
    shapes.append(_rectangle(box, 'white', 2.6))
    shapes.append(_rectangle(box, TRUTH, 1.4, dash='5 4'))
  for index in kept:
    label = int(sample['classes'][index])
    color = class_color(label)
    box = (sample['boxes'][index] * zoom).tolist()
    text = f'{class_names[label]} {sample["scores"][index]:.2f}'
    shapes.append(_rectangle(box, color, 2, title=text))
    if len(kept) > MAX_LABELED:
      continue
    spot = _free_spot(box, text, height * zoom, taken)
    if spot is not None:
      taken.append(spot)
      labels.append(_label(spot, text, color))
  return (
    f'<svg viewBox="0 0 {_WIDTH} {height * zoom:.1f}" role="img">'
    f'<image href="{_jpeg_uri(sample["image"])}" width="{_WIDTH}" '
    f'height="{height * zoom:.1f}"/>{"".join(shapes + labels)}</svg>'
  )


def _jpeg_uri(image: np.ndarray) -> str:
  picture = Image.fromarray(image)
  picture.thumbnail((2 * _WIDTH, 2 * _WIDTH))
  file = io.BytesIO()
  picture.save(file, format='jpeg', quality=85)
  return data_uri('image/jpeg', file.getvalue())


def data_uri(kind: str, data: bytes) -> str:
  """A picture's bytes as an address that needs no file; kind: 'image/jpeg', ..."""
  return f'data:{kind};base64,{base64.b64encode(data).decode()}'


def _rectangle(box, color: str, width: float, *, dash='none', title='') -> str:
  x1, y1, x2, y2 = box
  return (
    f'<rect x="{x1:.1f}" y="{y1:.1f}" width="{x2 - x1:.1f}" height="{y2 - y1:.1f}" '
    f'fill="transparent" stroke="{color}" stroke-width="{width}" '
    f'stroke-dasharray="{dash}"><title>{html.escape(title)}</title></rect>'
  )


def _free_spot(box, text: str, height: float, taken: list) -> tuple | None:
  """(x1, y1, x2, y2) for a label at the box that covers no other label, or None."""
  width, tall = 0.62 * _FONT * len(text) + 6, _FONT + 4
  x = min(max(box[0] - 1, 0), max(_WIDTH - width, 0))
  for y in (box[1] - tall, box[1], box[3] - tall, box[3]):
    spot = (x, y, x + width, y + tall)
    if 0 <= y <= height - tall and not any(_overlap(spot, other) for other in taken):
      return spot
  return None


def _overlap(a, b) -> bool:
  return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _label(spot, text: str, color: str) -> str:
  x1, y1, x2, y2 = spot
  return (
    f'<rect x="{x1:.1f}" y="{y1:.1f}" width="{x2 - x1:.1f}" height="{y2 - y1:.1f}" '
    f'fill="{color}" rx="2"/><text x="{x1 + 3:.1f}" y="{y2 - 4:.1f}" fill="white" '
    f'font-size="{_FONT}">{html.escape(text)}</text>'
  )
