"""Draws scenes whose box sides have a known uncertainty; needs only numpy.

A scene is 1 to 6 textured shapes on a 1/f background with distractors. Each side of a
shape is of one kind:

* sharp: sigma is SHARP_SIGMA pixels.
* blurred: the outline gets softer towards this side; there the ramp is 4 sigma wide.
* faded: the shape reaches past the side and fades out over 4 sigma around it.
* occluded: a bar of clutter, 4 sigma thick, is centerd on the side.

The annotated side is drawn from a normal distribution around the true side, with the
standard deviation sigma. The visible ramp or bar is always 4 sigma wide and centerd on
the true side, so an image shows all that can be known, and the right prediction for a
side is that normal distribution.

Against such annotations even the true sides do not reach an AP of 1;
`pytest -s tests/data/test_scenes.py -k perfect` prints what they reach.
"""

import functools
from typing import NamedTuple

import numpy as np

CLASS_NAMES = ('disc', 'square', 'triangle', 'diamond', 'cross', 'ring')
EDGE_KINDS = ('sharp', 'blurred', 'faded', 'occluded')
SHARP_SIGMA = 0.3  # pixels
AMBIGUOUS_SHARE = 0.3  # of the sides
AMBIGUOUS_SIGMA = (0.04, 0.10)  # of the object's extent across the side
VISIBLE_SIGMAS = 4.0  # width of a ramp or bar, in sigmas
MAX_OBJECTS = 6
# (share, smallest, largest) for COCO's small (< 32), medium and large (> 96): the
# geometric mean of width and height, in pixels of a 128 px scene.
SIZES = ((0.42, 12.0, 30.0), (0.46, 34.0, 80.0), (0.12, 97.0, 104.0))
BORDER = 2.0  # pixels between a true side and the image's border
# As shares of half the extent:
CROSS_ARM = 0.36  # half width of the cross's arms
RING_HOLE = 0.5  # radius of the ring's hole


class Scene(NamedTuple):
  """One drawn scene with n objects.

  Attributes:
    image: [size, size, 3] uint8.
    boxes: [n, 4] float64 annotated sides xyxy in pixels.
    true_boxes: [n, 4] float64 true sides, xyxy in pixels.
    labels: [n] int, index into CLASS_NAMES.
    edge_sigma: [n, 4] float64 (l, t, r, b) in pixels.
    edge_kind: [n, 4] int, index into EDGE_KINDS.
  """

  image: np.ndarray
  boxes: np.ndarray
  true_boxes: np.ndarray
  labels: np.ndarray
  edge_sigma: np.ndarray
  edge_kind: np.ndarray


def draw_scene(key: tuple[int, ...], size: int = 128) -> Scene:
  """Draws a scene; the same key always gives the same scene.

  Args: key: non-negative ints, as (seed, split, index); size: side of the image in
    pixels, at least 32.
  """
  rng = np.random.default_rng(key)
  true_boxes = _place(rng, size)
  count = len(true_boxes)
  labels = rng.integers(len(CLASS_NAMES), size=count)
  kinds, sigma = _edges(rng, true_boxes, size)
  noise = _noise(rng, size)
  image = _background(rng, noise, size)
  for box, label, kind, sig in zip(true_boxes, labels, kinds, sigma, strict=True):
    _draw_object(image, rng, box, label, kind, sig)
  for box, kind, sig in zip(true_boxes, kinds, sigma, strict=True):
    _draw_occluders(image, rng, noise, box, kind, sig)
  grain = rng.standard_normal(image.shape, np.float32) * rng.uniform(0.005, 0.02)
  image = np.clip(image + grain, 0, 1)
  boxes = np.clip(true_boxes + sigma * rng.standard_normal(sigma.shape), 0, size)
  return Scene(
    (image * 255 + 0.5).astype(np.uint8), boxes, true_boxes, labels, sigma, kinds
  )


def _place(rng, size: int) -> np.ndarray:
  """[n, 4] true boxes with gaps between them; at least one."""
  boxes = np.zeros((0, 4))
  shares, low, high = np.array(SIZES).T
  for _ in range(rng.integers(1, MAX_OBJECTS + 1)):
    kind = rng.choice(len(shares), p=shares)
    extent = rng.uniform(low[kind], high[kind]) * size / 128
    # A large object has no room for a ratio far from 1.
    ratio = np.exp(rng.uniform(-1, 1) * (0.05 if kind == 2 else 0.35))
    width, height = extent * np.sqrt(ratio), extent / np.sqrt(ratio)
    for _ in range(20):
      x = rng.uniform(BORDER, size - BORDER - width)
      y = rng.uniform(BORDER, size - BORDER - height)
      box = np.array([x, y, x + width, y + height])
      overlap = np.minimum(box[2:], boxes[:, 2:]) - np.maximum(box[:2], boxes[:, :2])
      # The gaps are for bars and ramps, which reach outside their boxes.
      if not (overlap > -0.03 * size).all(-1).any():
        boxes = np.concatenate([boxes, box[None]])
        break
  return boxes


def _edges(rng, boxes: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
  """Kind [n, 4] and sigma [n, 4] of each side."""
  extents = (boxes[:, 2:] - boxes[:, :2])[:, [0, 1, 0, 1]]
  room = np.abs(boxes - np.array([0, 0, size, size]))
  # Keep ramps and annotations within the image.
  sigma = np.minimum(rng.uniform(*AMBIGUOUS_SIGMA, boxes.shape) * extents, room / 2.5)
  kinds = rng.integers(1, len(EDGE_KINDS), boxes.shape)
  sharp = rng.random(boxes.shape) >= AMBIGUOUS_SHARE
  sharp |= sigma <= SHARP_SIGMA
  return np.where(sharp, 0, kinds), np.where(sharp, SHARP_SIGMA, sigma)


def _noise(rng, size: int) -> np.ndarray:
  """[size, size, 3] float32 1/f noise of three channels, mean 0, std about 1."""
  damping = _damping(size)
  spectrum = rng.standard_normal((3, *damping.shape, 2), np.float32)
  spectrum = spectrum * damping[..., None]
  noise = np.fft.irfft2(spectrum.view(np.complex64)[..., 0], (size, size))
  noise = noise / noise.std(axis=(1, 2), keepdims=True)
  # Natural images vary more in brightness than in color.
  noise = 0.9 * noise[:1] + 0.44 * noise
  return np.ascontiguousarray(np.moveaxis(noise, 0, -1), np.float32)


@functools.cache
def _damping(size: int) -> np.ndarray:
  """[size, size // 2 + 1] float32, 1 / frequency; 0 for the mean."""
  frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None])
  frequency[0, 0] = np.inf
  return (1 / frequency).astype(np.float32)


def _background(rng, noise: np.ndarray, size: int) -> np.ndarray:
  image = rng.uniform(0.3, 0.7, 3).astype(np.float32) + 0.11 * noise
  for _ in range(rng.integers(3, 9)):
    (_distractor_line, _distractor_bar)[rng.integers(2)](image, rng, noise, size)
  return image


def _distractor_line(image, rng, noise, size):
  """A thin line right across the image."""
  angle, width = rng.uniform(0, np.pi), rng.uniform(0.5, 1.5)
  at = np.arange(size, dtype=np.float32)
  distance = np.cos(angle) * (at[None] - rng.uniform(0, size))
  distance = distance + np.sin(angle) * (at[:, None] - rng.uniform(0, size))
  alpha = 0.7 * np.clip(width + 0.5 - np.abs(distance), 0, 1)
  on, color = np.nonzero(alpha), rng.uniform(0, 1, 3).astype(np.float32)
  image[on] += alpha[on][:, None] * (color - image[on])


def _distractor_bar(image, rng, noise, size):
  """A bar that hides no side, so that bars do not show where objects are."""
  extent = np.array([rng.uniform(3, 0.12 * size), rng.uniform(0.15, 0.6) * size])
  center, half = rng.uniform(0, size, 2), rng.permutation(extent) / 2
  _draw_bar(image, rng, noise, np.concatenate([center - half, center + half]))


def _draw_object(image, rng, box, label, kind, sigma):
  """Paints one shape with its sharp, blurred and faded sides."""
  ramp = VISIBLE_SIGMAS * sigma
  outward = np.array([-1, -1, 1, 1])
  x0, y0, x1, y1 = shape = box + outward * np.where(kind == 2, ramp / 2, 0)
  (left, top), (right, bottom) = _window(shape + outward * (ramp / 2 + 1), len(image))
  x = np.arange(left, right, dtype=np.float32)[None] + 0.5
  y = np.arange(top, bottom, dtype=np.float32)[:, None] + 0.5
  distance = _signed_distance(label, x, y, (x0, y0, x1, y1))
  inward = (x - box[0], y - box[1], box[2] - x, box[3] - y)
  softness, fade = np.ones_like(distance), np.ones_like(distance)
  for side in range(4):
    if kind[side] == 1:
      extent = box[2 + side % 2] - box[side % 2]
      near = np.clip(1 - inward[side] / (0.5 * extent), 0, 1)
      softness = np.maximum(softness, 1 + (ramp[side] - 1) * near)
    elif kind[side] == 2:
      fade = fade * np.clip(inward[side] / ramp[side] + 0.5, 0, 1)
  alpha = np.clip(0.5 + distance / softness, 0, 1) * fade
  region = image[top:bottom, left:right]
  paint = _texture(rng, x, y, region.mean(axis=(0, 1)))
  region += alpha[..., None].astype(np.float32) * (paint - region)


def _signed_distance(label, x, y, box) -> np.ndarray:
  """Approximate distance to a shape's outline in pixels, positive inside."""
  x0, y0, x1, y1 = box
  a, b = (x1 - x0) / 2, (y1 - y0) / 2
  u, v = (x - (x0 + x1) / 2) / a, (y - (y0 + y1) / 2) / b
  rectangle = lambda p, q: np.minimum((p - np.abs(u)) * a, (q - np.abs(v)) * b)
  name = CLASS_NAMES[label]
  if name in ('disc', 'ring'):
    radius = np.hypot(u, v) + 1e-6
    slope = np.hypot(u / a, v / b) / radius + 1e-6
    disc = (1 - radius) / slope
    return disc if name == 'disc' else np.minimum(disc, (radius - RING_HOLE) / slope)
  if name == 'square':
    return rectangle(1, 1)
  if name == 'triangle':
    legs = ((v + 1) / 2 - np.abs(u)) / np.hypot(1 / a, 0.5 / b)
    return np.minimum(legs, (1 - v) * b)
  if name == 'diamond':
    return (1 - np.abs(u) - np.abs(v)) / np.hypot(1 / a, 1 / b)
  return np.maximum(rectangle(CROSS_ARM, 1), rectangle(1, CROSS_ARM))


def _texture(rng, x, y, behind: np.ndarray) -> np.ndarray:
  """[h, w, 3] stripes or checks of two related colors that differ from `behind`."""
  colors = rng.uniform(0, 1, (8, 3))
  color = colors[np.argmax(np.abs(colors - behind).sum(-1) > 0.75)]
  if np.abs(color - behind).sum() <= 0.75:
    color = (behind < 0.5).astype(float)
  second = np.clip(color + rng.uniform(-0.25, 0.25, 3), 0, 1)
  angle, period = rng.uniform(0, np.pi), rng.uniform(4, 16)
  along = (np.cos(angle) * x + np.sin(angle) * y) * (2 * np.pi / period)
  wave = np.sin(along)
  if rng.random() < 0.5:
    across = (np.cos(angle) * y - np.sin(angle) * x) * (2 * np.pi / period)
    wave = wave * np.sin(across)
  mix = (0.5 + 0.5 * wave)[..., None]
  return (color + mix * (second - color)).astype(np.float32)


def _draw_occluders(image, rng, noise, box, kind, sigma):
  for side in np.flatnonzero(kind == 3):
    bar = box.copy()
    axis = side % 2
    half = VISIBLE_SIGMAS * sigma[side] / 2
    bar[axis], bar[axis + 2] = box[side] - half, box[side] + half
    overhang = 0.1 * (box[3 - axis] - box[1 - axis])
    bar[1 - axis] -= overhang
    bar[3 - axis] += overhang
    _draw_bar(image, rng, noise, bar)


def _draw_bar(image, rng, noise, bar):
  """A rectangle of clutter with antialiased sides."""
  (left, top), (right, bottom) = _window(bar, len(image))
  if right <= left or bottom <= top:
    return
  x = np.arange(left, right)[None]
  y = np.arange(top, bottom)[:, None]
  cover_x = np.clip(np.minimum(bar[2], x + 1) - np.maximum(bar[0], x), 0, 1)
  cover_y = np.clip(np.minimum(bar[3], y + 1) - np.maximum(bar[1], y), 0, 1)
  alpha = (cover_x * cover_y)[..., None].astype(np.float32)
  color = rng.uniform(0.1, 0.9, 3).astype(np.float32)
  paint = color + 0.11 * noise[::-1, ::-1][top:bottom, left:right]
  region = image[top:bottom, left:right]
  region += alpha * (paint - region)


def _window(box, size):
  """Corners of the whole pixels that a box touches within the image."""
  low = np.clip(np.floor(box[:2]), 0, size).astype(int)
  return low, np.clip(np.ceil(box[2:]), 0, size).astype(int)
