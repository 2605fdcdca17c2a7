"""Boxes as (x1, y1, x2, y2) in continuous coordinates: width is x2 - x1, no +1.

The unit (pixels, strides) is free, but all arguments must share it. Boxes without area
and inverted boxes are allowed: the floors `eps` keep every value and gradient finite.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Real

from gfl_jax.ops.arrays import ArrayLike


def area(boxes: Float[ArrayLike, '*n 4']) -> Float[Array, '*n']:
  """Width times height, in square units of the boxes.

  Nothing is clamped: a box inverted along one axis has a negative area, as in mmdet.
  """
  return jnp.asarray((boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1]))


def iou(
  a: Float[ArrayLike, '*n 4'], b: Float[ArrayLike, '*n 4'], *, eps: float = 1e-6
) -> Float[Array, '*n']:
  """Intersection over union of each box with its partner; in [0, 1] unless inverted.

  Args:
    a: boxes.
    b: boxes in the same unit, as many as `a`.
    eps: floor of the union, in square units.

  Source: mmdet's bbox_overlaps (mode 'iou'), with its gradient where boxes only touch.
  """
  return _iou(a, b, eps)


def giou(
  a: Float[ArrayLike, '*n 4'], b: Float[ArrayLike, '*n 4'], *, eps: float = 1e-6
) -> Float[Array, '*n']:
  """Generalised IoU of each box with its partner: IoU - (hull - union) / hull.

  In [-1, 1]; the hull is the smallest box around both.

  Args:
    a: boxes.
    b: boxes in the same unit, as many as `a`.
    eps: floor of the union and of the hull, in square units.

  Source: Rezatofighi et al., arXiv:1902.09630; mmdet's bbox_overlaps (mode 'giou').
  """
  return _giou(a, b, eps)


def iou_matrix(
  a: Float[ArrayLike, '*b n 4'], b: Float[ArrayLike, '*b m 4'], *, eps: float = 1e-6
) -> Float[Array, '*b n m']:
  """IoU of every box of `a` with every box of `b`; see `iou`."""
  return _iou(a[..., :, None, :], b[..., None, :, :], eps)


def giou_matrix(
  a: Float[ArrayLike, '*b n 4'], b: Float[ArrayLike, '*b m 4'], *, eps: float = 1e-6
) -> Float[Array, '*b n m']:
  """Generalised IoU of every box of `a` with every box of `b`; see `giou`."""
  return _giou(a[..., :, None, :], b[..., None, :, :], eps)


def clip_boxes(
  boxes: Float[ArrayLike, '*n 4'], image_size: Real[ArrayLike, '2'] | tuple[int, int]
) -> Float[Array, '*n 4']:
  """Moves the sides into the image: x to [0, width], y to [0, height].

  Args:
    boxes: in pixels.
    image_size: (height, width) in pixels.
  """
  height, width = image_size[0], image_size[1]
  limits = jnp.stack([width, height, width, height])
  return jnp.clip(boxes, 0, jnp.expand_dims(limits, range(boxes.ndim - 1)))


def distances_to_boxes(
  points: Float[ArrayLike, '*n 2'], distances: Float[ArrayLike, '*n 4']
) -> Float[Array, '*n 4']:
  """Boxes whose sides lie (left, top, right, bottom) away from the points (x, y).

  Points and distances share their unit, which is also the unit of the boxes.
  """
  return jnp.concatenate(
    [points - distances[..., :2], points + distances[..., 2:]], axis=-1
  )


def boxes_to_distances(
  points: Float[ArrayLike, '*n 2'], boxes: Float[ArrayLike, '*n 4']
) -> Float[Array, '*n 4']:
  """Distances (left, top, right, bottom) from the points to the sides of the boxes.

  The inverse of `distances_to_boxes`. Negative where the point lies outside.
  """
  return jnp.concatenate([points - boxes[..., :2], boxes[..., 2:] - points], axis=-1)


def centerness(distances: Float[ArrayLike, '*n 4']) -> Float[Array, '*n']:
  """How near a point is to the center of its box, from 1 at it to 0 on a side.

  sqrt(min(l, r) / max(l, r) * min(t, b) / max(t, b)).

  Args:
    distances: (left, top, right, bottom) from the point to the sides, in any unit. If
      one of them is 0 or less, the point is not inside and the result is 0.

  Source: Tian et al., arXiv:1904.01355, eq. 3.
  """
  distances = jnp.asarray(distances)
  inside = jnp.min(distances, axis=-1) > 0
  distances = jnp.where(inside[..., None], distances, 1)
  before, after = distances[..., :2], distances[..., 2:]
  ratios = jnp.minimum(before, after) / jnp.maximum(before, after)
  return jnp.where(inside, jnp.sqrt(ratios[..., 0] * ratios[..., 1]), 0)


def corner_radius(
  sizes: Float[ArrayLike, '*n 2'], *, min_overlap: float
) -> Float[Array, '*n']:
  """How far a box's corners may move along both axes while it keeps a given IoU.

  CornerNet takes the smallest radius of three cases: the box is moved by it along both
  axes, grown by it on all sides, or shrunk by it on all sides. Shrinking always has the
  smallest, so r solves (width - 2 r) * (height - 2 r) = min_overlap * width * height.

  Args:
    sizes: (width, height) in any unit, which is also that of the radius. If one is 0 or
      less, the radius is 0.
    min_overlap: the IoU to keep, in (0, 1).

  Raises:
    ValueError: a min_overlap outside (0, 1).

  Source: Law and Deng, arXiv:1808.01244, section 3.2. As the root of a r^2 - b r + c
  their code takes (b + sqrt(b^2 - 4 a c)) / 2, which is a root only for a = 1. At an
  overlap of 0.7 its radii are more than three times these.
  """
  if not 0 < min_overlap < 1:
    raise ValueError(f'{min_overlap=} must be above 0 and below 1')
  sizes = jnp.maximum(sizes, 0)
  total, product = sizes[..., 0] + sizes[..., 1], sizes[..., 0] * sizes[..., 1]
  lost = (1 - min_overlap) * product
  # The smaller root, in the form without a difference of nearly equal numbers.
  denominator = total + jnp.sqrt(jnp.maximum(jnp.square(total) - 4 * lost, 0))
  return lost / jnp.where(denominator > 0, denominator, 1)


def _iou(a, b, eps):
  intersection, union = _intersection_and_union(a, b, eps)
  return intersection / union


def _giou(a, b, eps):
  intersection, union = _intersection_and_union(a, b, eps)
  high, low = jnp.maximum(a[..., 2:], b[..., 2:]), jnp.minimum(a[..., :2], b[..., :2])
  sizes = _at_least_zero(high - low)
  hull = jnp.maximum(sizes[..., 0] * sizes[..., 1], eps)
  return intersection / union - (hull - union) / hull


def _intersection_and_union(a, b, eps):
  high, low = jnp.minimum(a[..., 2:], b[..., 2:]), jnp.maximum(a[..., :2], b[..., :2])
  sizes = _at_least_zero(high - low)
  intersection = sizes[..., 0] * sizes[..., 1]
  return intersection, jnp.maximum(area(a) + area(b) - intersection, eps)


def _at_least_zero(x):
  # At exactly 0 the whole gradient passes, as through torch's clamp(min=0): boxes that
  # only touch still attract each other. jnp.maximum would pass half of it.
  return jnp.where(x >= 0, x, 0)
