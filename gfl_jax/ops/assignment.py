"""Which anchor learns which box, and soft labels around the boxes' centers."""

import functools
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from gfl_jax.ops import boxes as box_ops
from gfl_jax.ops.arrays import ArrayLike
from gfl_jax.ops.nearest_points import nearest_points
from gfl_jax.ops.points import Points, level_slices

BACKGROUND = -1
IGNORED = -2
# px; an anchor learns a box only if its point is farther inside all sides (mmdet's).
_LEAST_DISTANCE = 0.01


class Assignment(NamedTuple):
  """The box of each anchor.

  Attributes:
    matched: [A] index of the box, -1 for background, -2 for anchors that are ignored.
    iou: [A] of the anchor with its box; 0 without one.
  """

  matched: Int[Array, ' a']
  iou: Float[Array, ' a']


def atss(
  boxes: Float[ArrayLike, 'g 4'],
  valid: Bool[ArrayLike, '...'],
  points: Points,
  *,
  top_k: int = 9,
  point_valid: Bool[ArrayLike, '...'] | None = None,
) -> Assignment:
  """Adaptive training sample selection for one image; to be vmapped over images.

  The candidates of a box are, on every level, the anchors of the `top_k` valid points
  nearest to its center (on a smaller level, all). A candidate is positive if its IoU is
  at least mean + standard deviation (n - 1) of the IoUs of all candidates of the box,
  and its point is more than 0.01 px inside the box on all sides. An anchor that is
  positive for several boxes gets the one of highest IoU. A box may get no anchor.

  Ties: equally distant points rank by index; of boxes whose IoUs are equal to one part
  in a million the first listed wins. A single candidate has standard deviation 0.

  Args:
    boxes: ground truth in pixels of the network input, padded to a fixed number.
    valid: which of the boxes are real.
    points: of the canvas.
    top_k: candidates per box and level, at least 1.
    point_valid: anchors that the image may train on (all if None); on each level a
      rectangle at the top left, from `points.point_validity`. The others are ignored.

  Raises:
    ValueError: a top_k below 1; numbers of boxes, flags or points that differ.

  Source: Zhang et al., arXiv:1912.02424; mmdet's ATSSAssigner (ties aside).
  """
  if top_k < 1:
    raise ValueError(f'{top_k=} must be at least 1')
  point_valid = _checked(boxes, valid, points, point_valid)
  boxes = jnp.asarray(boxes)
  levels = [
    nearest_points(boxes, points, level, point_valid, top_k)
    for level in range(len(points.level_sizes))
  ]
  index, centers, anchors, chosen = (
    jnp.concatenate(parts, axis=1) for parts in zip(*levels, strict=True)
  )
  chosen &= valid[:, None]
  iou = box_ops.iou_matrix(boxes[:, None], anchors)[:, 0]
  repeated = jnp.broadcast_to(boxes[:, None], anchors.shape)
  distances = box_ops.boxes_to_distances(centers, repeated)
  inside = jnp.min(distances, axis=-1) > _LEAST_DISTANCE
  positive = chosen & inside & (iou >= _threshold(iou, chosen))
  return _resolve(index, iou, positive, point_valid)


def fcos(
  boxes: Float[ArrayLike, 'g 4'],
  valid: Bool[ArrayLike, '...'],
  points: Points,
  *,
  regress_range: float = 8.0,
  center_radius: float = 1.5,
  point_valid: Bool[ArrayLike, '...'] | None = None,
) -> Assignment:
  """FCOS's rule for one image; to be vmapped over images.

  A point may learn a box if it is strictly inside the middle of the box (within
  `center_radius` strides of the point's level from the center along each axis, not
  beyond the box) and its distance to the farthest side is in the range of its level: at
  most `regress_range` strides, and at least the largest distance of the level before,
  both included. The first level has no least distance, the last no largest. Of several
  boxes the point gets the one of smallest area (of equal areas the first listed). A box
  may get no point.

  Args:
    boxes: ground truth in pixels of the network input, padded to a fixed number.
    valid: which of the boxes are real.
    points: of the canvas.
    regress_range: largest distance that a level learns, in its strides; above 0.
    center_radius: half side of the middle, in strides; 0 takes the whole box.
    point_valid: points that the image may train on (all if None); others are ignored.

  Raises:
    ValueError: a range or radius outside its bounds; numbers of boxes, flags or points
      that differ.

  Source: Tian et al., arXiv:1904.01355; mmdet's FCOSHead, with center_sampling and the
  ranges 64, 128, 256 and 512 px of its five levels.
  """
  if not regress_range > 0 or not center_radius >= 0:
    raise ValueError(f'{regress_range=} must be above 0, {center_radius=} at least 0')
  point_valid = _checked(boxes, valid, points, point_valid)
  boxes, valid = _without_padding(boxes, valid)

  # One array [A, G] per coordinate: with a last axis of 4 the CPU's loops are not
  # vectorised, and take thirty times as long.
  x, y, strides = (v[:, None] for v in (*points.centers.T, points.strides))
  x1, y1, x2, y2 = boxes.T[:, None]
  left, up, right, down = x1, y1, x2, y2
  if center_radius:
    half = strides * np.float32(center_radius)
    middle_x, middle_y = (x1 + x2) / 2, (y1 + y2) / 2
    left, right = jnp.maximum(x1, middle_x - half), jnp.minimum(x2, middle_x + half)
    up, down = jnp.maximum(y1, middle_y - half), jnp.minimum(y2, middle_y + half)
  inside = (x > left) & (x < right) & (y > up) & (y < down)
  reach = jnp.maximum(jnp.maximum(x - x1, x2 - x), jnp.maximum(y - y1, y2 - y))
  nearest, farthest = _regress_ranges(points, regress_range)
  may_learn = valid[None] & inside & (reach >= nearest) & (reach <= farthest)

  by_area = jnp.argsort(box_ops.area(boxes))
  rank = jnp.argsort(by_area)[None]
  first = jnp.min(jnp.where(may_learn, rank, len(boxes)), axis=1)
  box = by_area[jnp.minimum(first, len(boxes) - 1)]
  matched = jnp.where(first < len(boxes), box, BACKGROUND)
  return _assignment(matched, box_ops.iou(points.anchors, boxes[box]), point_valid)


def max_iou(
  boxes: Float[ArrayLike, 'g 4'],
  valid: Bool[ArrayLike, '...'],
  points: Points,
  *,
  positive_iou: float = 0.5,
  negative_iou: float = 0.4,
  point_valid: Bool[ArrayLike, '...'] | None = None,
) -> Assignment:
  """RetinaNet's rule for one image; to be vmapped over images.

  An anchor may learn a box if its point is more than 0.01 px inside on all sides. Of
  these boxes it gets the one of highest IoU, if that is at least `positive_iou`. An
  anchor without a box is background if its IoU with every box is below `negative_iou`,
  and ignored otherwise. Then each box also gets the anchor of highest IoU of those that
  may learn it, however low this IoU, and all anchors whose IoU is equal to one part in
  a million. Such an anchor loses the box that it had; if several boxes claim it, the
  last listed gets it. A box that contains no point gets no anchor.

  Args:
    boxes: ground truth in pixels of the network input, padded to a fixed number.
    valid: which of the boxes are real.
    points: of the canvas.
    positive_iou: in (0, 1].
    negative_iou: in [0, positive_iou].
    point_valid: anchors that the image may train on (all if None); others are ignored.

  Raises:
    ValueError: thresholds outside their bounds; numbers of boxes, flags or points that
      differ.

  Source: Lin et al., arXiv:1708.02002; mmdet's MaxIoUAssigner with min_pos_iou=0. There
  any anchor may learn any box, because it predicts offsets from the anchor's sides.
  Here it predicts distances from its point, which must be in the box: of 36 anchors of
  64 px that tie for the best IoU with a box of 16 px, 4 have their points in it.
  """
  if not 0 <= negative_iou <= positive_iou <= 1 or not positive_iou > 0:
    raise ValueError(
      f'{negative_iou=} and {positive_iou=} must satisfy 0 <= negative <= positive <= 1'
      ' and 0 < positive'
    )
  point_valid = _checked(boxes, valid, points, point_valid)
  boxes, valid = _without_padding(boxes, valid)

  iou = box_ops.iou_matrix(points.anchors, boxes)
  iou = jnp.where(valid[None] & point_valid[:, None], iou, -1)
  x, y = points.centers.T[:, :, None]
  x1, y1, x2, y2 = boxes.T[:, None]
  nearest = jnp.minimum(jnp.minimum(x - x1, x2 - x), jnp.minimum(y - y1, y2 - y))
  own = jnp.where(nearest > _LEAST_DISTANCE, iou, -1)
  matched = jnp.where(jnp.max(iou, axis=1) < negative_iou, BACKGROUND, IGNORED)
  positive = jnp.max(own, axis=1) >= positive_iou
  matched = jnp.where(positive, jnp.argmax(own, axis=1), matched)
  best_of_box = jnp.max(own, axis=0, keepdims=True)
  # Not ==: the compiler may compute an IoU twice, with different roundings.
  given = (best_of_box > 0) & (own >= best_of_box * (1 - 1e-6))
  last = jnp.max(jnp.where(given, np.arange(len(boxes))[None], -1), axis=1)
  matched = jnp.where(last >= 0, last, matched)
  iou = jnp.take_along_axis(iou, jnp.maximum(matched, 0)[:, None], axis=1)[:, 0]
  return _assignment(matched, iou, point_valid)


def center_heatmap(
  boxes: Float[ArrayLike, 'g 4'],
  labels: Int[ArrayLike, '...'],
  valid: Bool[ArrayLike, '...'],
  matched: Int[ArrayLike, '...'],
  points: Points,
  num_classes: int,
  *,
  min_overlap: float = 0.7,
) -> Float[Array, 'a {num_classes}']:
  """CornerNet's soft labels around the centers of boxes, for one image; to be vmapped.

  On every level on which a box has anchors, its peak is the one whose point is nearest
  to the box's center (of equally near ones the first), with the label 1. The level's
  other points have exp(-d^2 / (2 sigma^2)), where d is the distance from the peak in
  cells, sigma is (2 r + 1) / 6, and r is the `boxes.corner_radius` of the box in cells.
  Of several boxes of a class, each point has the largest value.

  Args:
    boxes: ground truth in pixels of the network input, padded to a fixed number.
    labels: class of each box.
    valid: which of the boxes are real.
    matched: index of each anchor's box, negative without one: `Assignment.matched`.
    points: of the canvas.
    num_classes: C of the result [A, C], float32.
    min_overlap: the IoU that a box keeps when its corners move by r, in (0, 1).

  Raises:
    ValueError: a min_overlap outside (0, 1), no class, or numbers of boxes, labels,
      flags, anchors or points that differ.

  Source: Law and Deng, arXiv:1808.01244, section 3.2, for centers instead of corners.
  Their code rounds r down, and sets a Gaussian to 0 beyond r cells.
  """
  if num_classes < 1:
    raise ValueError(f'{num_classes=} must be at least 1')
  if labels.shape != valid.shape:
    raise ValueError(f'{labels.shape=} must be {valid.shape=}, one per box')
  if matched.shape != (len(points.centers),):
    raise ValueError(
      f'{matched.shape=} must be ({len(points.centers)},), one per point'
    )
  _checked(boxes, valid, points, None)

  boxes, box_index = jnp.asarray(boxes), np.arange(len(boxes))[:, None]
  middle_x, middle_y = jnp.split((boxes[:, :2] + boxes[:, 2:]) / 2, 2, axis=1)
  levels = []
  parts = level_slices(points)
  for part, (rows, columns) in zip(parts, points.level_sizes, strict=True):
    own = (matched[part][None] == box_index) & valid[:, None]
    x, y = points.centers[part].T[:, None]
    distance = jnp.square(x - middle_x) + jnp.square(y - middle_y)
    peak = jnp.argmin(jnp.where(own, distance, jnp.inf), axis=1, keepdims=True)
    sizes = (boxes[:, 2:] - boxes[:, :2]) / points.strides[part.start]
    sigma = (2 * box_ops.corner_radius(sizes, min_overlap=min_overlap) + 1) / 6
    scale = -1 / (2 * jnp.square(sigma[:, None]))
    vertical = jnp.exp(scale * jnp.square(np.arange(rows)[None] - peak // columns))
    horizontal = jnp.exp(scale * jnp.square(np.arange(columns)[None] - peak % columns))
    gaussian = (vertical[:, :, None] * horizontal[:, None]).reshape(own.shape)
    levels.append(jnp.where(jnp.any(own, axis=1, keepdims=True), gaussian, 0))
  # Scattered by whole rows of a class, because by element it costs far more.
  heatmap = jnp.zeros((num_classes, len(points.centers)), jnp.float32)
  return heatmap.at[labels].max(jnp.concatenate(levels, axis=1)).T


def _checked(boxes, valid, points, point_valid):
  """Raises ValueError if numbers differ; returns the flags of all points."""
  num_boxes, num_points = len(boxes), len(points.centers)
  if valid.shape != (num_boxes,):
    raise ValueError(f'{valid.shape=} must be ({num_boxes},), one per box')
  if point_valid is None:
    point_valid = np.ones(num_points, bool)
  if point_valid.shape != (num_points,):
    raise ValueError(f'{point_valid.shape=} must be ({num_points},), one per point')
  return point_valid


def _without_padding(boxes, valid):
  """Boxes with zeros in the padding; one such box if there is none to reduce over."""
  if not len(boxes):
    return jnp.zeros((1, 4)), jnp.zeros(1, bool)
  return jnp.where(valid[:, None], boxes, 0), jnp.asarray(valid)


def _regress_ranges(points, regress_range):
  """[A, 1] each: the least and the largest distance that a point may learn, in px."""
  parts = level_slices(points)
  farthest = [regress_range * points.strides[part.start] for part in parts[:-1]]
  sizes = [part.stop - part.start for part in parts]
  ends = np.array([-1, *farthest, np.inf], np.float32)
  return np.repeat(ends[:-1], sizes)[:, None], np.repeat(ends[1:], sizes)[:, None]


def _assignment(matched, iou, point_valid):
  """Ignores invalid points, and sets the IoU of anchors without a box to 0."""
  matched = jnp.where(point_valid, matched, IGNORED).astype(jnp.int32)
  return Assignment(matched, jnp.where(matched >= 0, iou, 0))


def _threshold(iou, chosen):
  """[g, 1] mean plus standard deviation (n - 1) of the chosen."""
  total = functools.partial(jnp.sum, axis=1, keepdims=True)
  count = total(chosen)
  mean = total(jnp.where(chosen, iou, 0)) / jnp.maximum(count, 1)
  squares = total(jnp.where(chosen, jnp.square(iou - mean), 0))
  return mean + jnp.sqrt(squares / jnp.maximum(count - 1, 1))


def _resolve(index, iou, positive, point_valid):
  """Gives each anchor the box of highest IoU among those that it is positive for."""
  num_boxes, num_points = len(index), len(point_valid)
  nowhere = num_points  # a scatter drops indices that are out of bounds
  target = jnp.where(positive, index, nowhere)
  best_iou = jnp.zeros(num_points, iou.dtype).at[target].max(iou, mode='drop')
  # Not ==: the compiler may compute an IoU twice, with different roundings.
  contested = best_iou[index]
  wins = positive & (contested > 0) & (iou >= contested * (1 - 1e-6))
  box = jnp.broadcast_to(jnp.arange(num_boxes, dtype=jnp.int32)[:, None], index.shape)
  matched = jnp.full(num_points, num_boxes, jnp.int32)
  matched = matched.at[jnp.where(wins, index, nowhere)].min(box, mode='drop')
  matched = jnp.where(matched < num_boxes, matched, BACKGROUND)
  return _assignment(matched, best_iou, point_valid)
