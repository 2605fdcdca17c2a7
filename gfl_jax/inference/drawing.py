"""Detections drawn on their image: box, class, score and the spread of each side."""

import functools
import importlib.util
import math
import pathlib

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageColor, ImageDraw, ImageFont

from gfl_jax.inference.predictor import ImageDetections

_SMALL_SIDE = 480  # px, up to which small images are enlarged
_MAX_ENLARGED = 8
_LINE_SHARE, _FONT_SHARE = 1 / 280, 1 / 40  # of the geometric mean of width and height
_MIN_FONT, _MAX_FONT = 10, 96  # px
_BAND_OPACITY = 85  # of 255
_BRIGHT = 115  # of 255: text on a brighter label is black

Rectangle = tuple[float, float, float, float]


def draw(image: UInt8[np.ndarray, 'h w 3'], found: ImageDetections) -> Image.Image:
  """A picture of the detections of one image.

  The outline of a box has the color of its class. The band along each side reaches one
  standard deviation in both directions: it is narrow where the detector is sure of the
  side. A label shows the class and the score. If it would cover another label it is
  moved, or left out if there is no room.

  Args:
    image: RGB, upright.
    found: the detections to draw, in px of this image.

  Returns:
    RGB, of the size of the image. An image of up to 240 px is enlarged by a whole
    number, so that its labels can be read.
  """
  height, width = image.shape[:2]
  zoom = min(max(_SMALL_SIDE // max(height, width), 1), _MAX_ENLARGED)
  picture = Image.fromarray(image)
  if zoom > 1:
    picture = picture.resize((width * zoom, height * zoom), Image.Resampling.BICUBIC)
  scale = math.sqrt(picture.width * picture.height)
  line = max(2, round(scale * _LINE_SHARE))
  weakest_first = reversed(range(len(found)))
  boxes = [tuple(box) for box in (found.boxes * zoom).tolist()]
  spreads = (found.edge_std * zoom).tolist()
  colors = [class_color(int(index)) for index in found.classes]
  drawing = ImageDraw.Draw(picture)
  for i in weakest_first:
    _draw_band(picture, boxes[i], spreads[i], colors[i])
    drawing.rectangle(_ordered(boxes[i]), outline=colors[i], width=line)
  font = _font(min(max(round(scale * _FONT_SHARE), _MIN_FONT), _MAX_FONT))
  taken: list[Rectangle] = []
  for i in range(len(found)):
    text = f'{found.names[i]} {found.scores[i]:.2f}'
    _draw_label(drawing, picture.size, boxes[i], text, colors[i], font, taken)
  return picture


def class_color(index: int) -> tuple[int, int, int]:
  """RGB of a class; neighboring classes are far apart on the color wheel."""
  hue = (210 + 137.508 * index) % 360  # as in a run's report
  return ImageColor.getrgb(f'hsl({hue:.3f}, 75%, 42%)')[:3]


def _draw_band(picture: Image.Image, box, spread, color) -> None:
  """Shades `spread` px (left, top, right, bottom) to either side of a box's sides."""
  sides = np.tile(box, (4, 1))
  for side, axis in enumerate((0, 1, 0, 1)):
    sides[side, [axis, axis + 2]] = box[side] - spread[side], box[side] + spread[side]
  x0, y0 = np.maximum(np.floor(sides.min(0)[:2]), 0).astype(int).tolist()
  x1, y1 = np.minimum(np.ceil(sides.max(0)[2:]), picture.size).astype(int).tolist()
  if x1 <= x0 or y1 <= y0:
    return
  # One mask for all four sides, so that the shade is equal where two bands cross.
  mask = Image.new('L', (x1 - x0, y1 - y0))
  shade = ImageDraw.Draw(mask)
  for side in sides:
    if (side[2:] > side[:2]).all():
      moved = side - (x0, y0, x0 + 1, y0 + 1)
      shade.rectangle(_ordered(moved.tolist()), fill=_BAND_OPACITY)
  picture.paste(color, (x0, y0), mask)


def _ordered(box) -> Rectangle:
  """The box with right >= left and bottom >= top, which rounding may have broken."""
  left, top, right, bottom = box
  return left, top, max(right, left), max(bottom, top)


def _draw_label(drawing, size, box, text, color, font, taken) -> None:
  pad = max(1, font.size // 6)
  width = drawing.textlength(text, font) + 2 * pad
  height = sum(font.getmetrics()) + pad
  spot = _free_spot(box, width, height, size, taken)
  if spot is None:
    return
  taken.append(spot)
  drawing.rounded_rectangle(spot, radius=pad, fill=color)
  brightness = np.dot(color, (0.299, 0.587, 0.114))
  ink = 'white' if brightness < _BRIGHT else 'black'
  drawing.text((spot[0] + pad, spot[1] + pad / 2), text, font=font, fill=ink)


def _free_spot(box, width, height, size, taken) -> Rectangle | None:
  """A place at the box for a label of this size that covers no other label."""
  left, top, right, bottom = box
  for x, y in (
    (left, top - height),
    (left, top),
    (right - width, top - height),
    (left, bottom - height),
    (left, bottom),
    (right - width, bottom),
  ):
    x = min(max(x, 0), max(size[0] - width, 0))
    spot = (x, y, x + width, y + height)
    inside = y >= 0 and y + height <= size[1]
    if inside and not any(_overlap(spot, other) for other in taken):
      return spot
  return None


def _overlap(a: Rectangle, b: Rectangle) -> bool:
  return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


@functools.cache
def _font(size: int) -> ImageFont.FreeTypeFont:
  """DejaVu Sans from matplotlib's files: it has Latin, Greek and Cyrillic letters.

  Pillow's own font has only ASCII.
  """
  # Importing matplotlib would take longer than all the drawing.
  package = importlib.util.find_spec('matplotlib')
  assert package is not None and package.origin is not None
  fonts = pathlib.Path(package.origin).parent / 'mpl-data' / 'fonts' / 'ttf'
  return ImageFont.truetype(fonts / 'DejaVuSans.ttf', size)
