"""Where the pixels and boxes of an image go on the canvas.

A training image passes four steps: resize (keeping its ratio), crop to the canvas if
a random zoom made it larger, mirror, place at the top left of the canvas. `Plan` holds
the numbers of these steps for a batch. `memory.place` follows it with pixels,
`boxes_on_canvas` with boxes. All randomness is five uniform numbers per image, drawn by
numpy from (seed, epoch), so streamed and cached images are treated alike.
"""

from typing import NamedTuple

import numpy as np

from gfl_jax.errors import UserError

NUM_DRAWS = 5  # mirror, short side, zoom, crop y, crop x
MIN_BOX_SIDE = 1.0  # original pixels; mmdet drops smaller annotations in training
MIN_SHARE_INSIDE = 0.5  # of a box's area, below which a crop removes the box


class Plan(NamedTuple):
  """What happens to each of the b images of a batch.

  Attributes:
    rows: [b] int64, position of the image in its split; -1 is a padding image.
    resized: [b, 2] int64 (h, w) after the resize, (0, 0) for a padding image.
    offsets: [b, 2] int64 (y, x) of the crop's corner in the resized image.
    mirrored: [b] bool, left and right swapped after the crop.
    canvas: (h, w) of the whole batch.
  """

  rows: np.ndarray
  resized: np.ndarray
  offsets: np.ndarray
  mirrored: np.ndarray
  canvas: tuple[int, int]

  @property
  def image_sizes(self) -> np.ndarray:
    """[b, 2] (h, w) of the part of the canvas that each image covers."""
    return np.minimum(self.resized, self.canvas)


def resized_sizes(
  sizes: np.ndarray, short_side: np.ndarray | int, max_long_side: int, zoom=1.0
) -> np.ndarray:
  """Sizes after a resize that keeps the ratio; mmdet's rule and rounding.

  Args:
    sizes: [b, 2] (h, w) in pixels.
    short_side: wanted shorter side in pixels, one or [b].
    max_long_side: if the longer side would exceed it, the longer side gets exactly this
      many pixels instead.
    zoom: factor on the result, one or [b].
  Returns: [b, 2] int64 (h, w), at least 1.
  Source: mmcv.imrescale: int(x * scale + 0.5).
  """
  sizes = np.asarray(sizes)
  scale = np.minimum(short_side / sizes.min(-1), max_long_side / sizes.max(-1)) * zoom
  return np.maximum((sizes * scale[:, None] + 0.5).astype(np.int64), 1)


def largest_sizes(sizes: np.ndarray, config) -> np.ndarray:
  """`resized_sizes` at the largest short side of config.data, without zoom."""
  return resized_sizes(sizes, config.short_side[1], config.max_long_side)


def is_turned(sizes: np.ndarray, canvas) -> np.ndarray:
  """[n] bool: the image comes on the transposed canvas.

  It does if one of image and canvas is portrait and the other landscape.
  Args: sizes [n, 2] and canvas, (h, w).
  """
  longer = np.sign(np.diff(sizes, axis=-1)[:, 0])  # 1 for landscape, -1 for portrait
  return longer * np.sign(canvas[1] - canvas[0]) < 0


def plan_training(
  rows: np.ndarray, sizes: np.ndarray, draws: np.ndarray, canvas, config
) -> Plan:
  """Turns uniform numbers into the steps of one batch of training images.

  Args:
    rows: [b] positions of the images.
    sizes: [b, 2] original (h, w).
    draws: [b, NUM_DRAWS] uniform in [0, 1).
    canvas: (h, w).
    config: config.data; short_side is drawn as an integer, both ends included, the
      zoom log-uniformly. An image larger than the canvas is cropped at random.
  """
  low, high = config.short_side
  short_side = low + np.floor(draws[:, 1] * (high - low + 1))
  zoom_low, zoom_high = config.zoom
  zoom = zoom_low * (zoom_high / zoom_low) ** draws[:, 2]
  resized = resized_sizes(sizes, short_side, config.max_long_side, zoom)
  excess = np.maximum(resized - canvas, 0)
  offsets = np.floor(draws[:, 3:5] * (excess + 1)).astype(np.int64)
  return Plan(rows, resized, offsets, draws[:, 0] < config.flip, tuple(canvas))


def plan_evaluation(rows: np.ndarray, sizes: np.ndarray, canvas, config) -> Plan:
  """The steps of evaluation: the largest short side, no mirror, no zoom.

  Rows of -1 are padding images, which leave the canvas black.
  """
  resized = np.where(rows[:, None] < 0, 0, largest_sizes(sizes, config))
  mirrored = np.zeros(len(rows), bool)
  return Plan(rows, resized, np.zeros_like(resized), mirrored, tuple(canvas))


def check_fit(sizes: np.ndarray, image_ids: np.ndarray, config) -> None:
  """Checks that every image, resized without zoom, fits its canvas.

  Args: sizes: [n, 2] (h, w); image_ids: [n]; config: config.data.
  Raises: ValueError naming the first image that does not fit.
  """
  turned = is_turned(sizes, config.canvas)
  canvases = np.array([config.canvas, config.canvas[::-1]])[turned.astype(int)]
  resized = largest_sizes(sizes, config)
  too_large = np.flatnonzero((resized > canvases).any(-1))
  if too_large.size:
    worst = too_large[0]
    raise UserError(
      f'image {image_ids[worst]} of (h, w) {tuple(sizes[worst].tolist())} becomes '
      f'{tuple(resized[worst].tolist())} with short_side={tuple(config.short_side)}, '
      f'max_long_side={config.max_long_side}: larger than the canvas '
      f'{tuple(canvases[worst].tolist())} ({too_large.size} such images): enlarge '
      'config.data.canvas or lower short_side or max_long_side'
    )


def clip_to_image(boxes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
  """Cuts xyxy boxes [n, 4] at the borders of their images, sizes [n, 2] (h, w)."""
  limits = sizes[:, [1, 0, 1, 0]].astype(boxes.dtype)
  return np.clip(boxes, 0, limits)


def is_degenerate(boxes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
  """[n] bool: not finite, or less than 1 px wide or high within the image.

  Args: boxes [n, 4] xyxy in original pixels; sizes [n, 2] (h, w) of their images.
  """
  finite = np.all(np.isfinite(boxes), axis=-1)
  clipped = clip_to_image(np.nan_to_num(boxes), sizes)
  # TFDS stores sides / image size in float32: 1 px may come back as 0.99999.
  large = np.all(clipped[:, 2:] - clipped[:, :2] >= MIN_BOX_SIDE - 1e-3, axis=-1)
  return np.logical_not(finite & large)


def boxes_on_canvas(
  boxes: np.ndarray, owner: np.ndarray, sizes: np.ndarray, plan: Plan
) -> tuple[np.ndarray, np.ndarray]:
  """Follows a plan with the boxes of its images.

  Args:
    boxes: [n, 4] float xyxy in original pixels, none degenerate.
    owner: [n] the box's image, an index into the plan's batch.
    sizes: [b, 2] original (h, w) of the batch's images.
    plan: the plan of that batch.
  Returns: boxes [n, 4] float32 xyxy in pixels of the canvas, cut at the image's
    border, and [n] bool: False if the crop left less than half of the area.
  """
  boxes = clip_to_image(boxes, sizes[owner])
  scale = (plan.resized / np.maximum(sizes, 1))[owner][:, [1, 0, 1, 0]]
  moved = boxes * scale - plan.offsets[owner][:, [1, 0, 1, 0]]
  visible = plan.image_sizes[owner]
  cut = clip_to_image(moved, visible)
  inside = _areas(cut) >= MIN_SHARE_INSIDE * _areas(moved)
  width = visible[:, 1]
  mirrored = np.stack([width - cut[:, 2], cut[:, 1], width - cut[:, 0], cut[:, 3]], -1)
  cut = np.where(plan.mirrored[owner][:, None], mirrored, cut)
  return cut.astype(np.float32), inside


def _areas(boxes):
  return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
