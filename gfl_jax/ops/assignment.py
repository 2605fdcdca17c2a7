"""Which anchor learns which box."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from gfl_jax.ops import boxes as box_ops
from gfl_jax.ops.points import Points, level_slices
from gfl_jax.ops.types import ArrayLike

BACKGROUND = -1
IGNORED = -2


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

  Candidates of a box are, on every level, the `top_k` valid points nearest to its
  center (all of them on a smaller level). An anchor is positive if it is a candidate,
  its IoU is at least mean + standard deviation (n - 1) of the candidates' IoUs, and its
  point lies more than 0.01 px inside the box on all sides. An anchor that several boxes
  want goes to the one of highest IoU. A box may get no anchor.

  Ties: equally distant points rank by index; IoUs equal to a part in a million go to
  the box listed first. A single candidate in all has standard deviation 0.

  The nearest points are found without looking at the others: with rows and columns
  ranked by their distance from the box's center, at least (a + 1) * (b + 1) points are
  as near as that of column rank a and row rank b, so only those with a product of at
  most top_k can be candidates. These are 23 for the 9 nearest, whatever the level.

  Args:
    boxes: ground truth in pixels of the network input, padded to a fixed number.
    valid: which of the boxes are real.
    points: of the canvas.
    top_k: candidates per box and level, at least 1.
    point_valid: anchors the image may train on (all if None); on each level a
      rectangle at the top left, as `points.point_validity` makes it. The others are
      ignored.

  Raises:
    ValueError: a top_k below 1; numbers of boxes, flags or points that differ.

  Source: Zhang et al., arXiv:1912.02424; mmdet's ATSSAssigner (ties aside).
  """
  num_boxes, num_points = len(boxes), len(points.centers)
  if top_k < 1:
    raise ValueError(f'{top_k=} must be at least 1')
  if valid.shape != (num_boxes,):
    raise ValueError(f'{valid.shape=} must be ({num_boxes},), one per box')
  if point_valid is None:
    point_valid = np.ones(num_points, bool)
  if point_valid.shape != (num_points,):
    raise ValueError(f'{point_valid.shape=} must be ({num_points},), one per point')

  boxes = jnp.asarray(boxes)
  levels = [
    _level_candidates(
      boxes, points, level, point_valid[level_slices(points)[level]], top_k
    )
    for level in range(len(points.level_sizes))
  ]
  index, centers, anchors, chosen = (
    jnp.concatenate(parts, axis=1) for parts in zip(*levels, strict=True)
  )
  chosen &= valid[:, None]
  iou = box_ops.iou_matrix(boxes[:, None], anchors)[:, 0]
  inside = box_ops.boxes_to_distances(
    centers, jnp.broadcast_to(boxes[:, None], anchors.shape)
  )
  inside = jnp.min(inside, axis=-1) > 0.01
  positive = chosen & inside & (iou >= _threshold(iou, chosen))
  return _resolve(index, iou, positive, point_valid)


def _level_candidates(boxes, points, level, point_valid, top_k):
  """The points of a level nearest to each box, by index.

  Returns index [g, k], center [g, k, 2] and anchor [g, k, 4], and whether they exist.
  """
  rows, columns = points.level_sizes[level]
  point_valid = jnp.asarray(point_valid).reshape(rows, columns)
  valid_rows = jnp.sum(jnp.any(point_valid, axis=1))
  valid_columns = jnp.sum(jnp.any(point_valid, axis=0))
  first = level_slices(points)[level].start
  origin, stride = points.centers[first], points.strides[first]
  half_side = points.anchors[first, 2] - origin[0]

  ranks = [
    (a, b) for a in range(top_k) for b in range(top_k) if (a + 1) * (b + 1) <= top_k
  ]
  column_ranks, row_ranks = np.asarray(ranks).T
  x, y = jnp.split((boxes[:, :2] + boxes[:, 2:]) / 2, 2, axis=1)
  column = _nearest((x - origin[0]) / stride, valid_columns, top_k)[:, column_ranks]
  row = _nearest((y - origin[1]) / stride, valid_rows, top_k)[:, row_ranks]
  exists = (column_ranks[None] < valid_columns) & (row_ranks[None] < valid_rows)

  # Rank by counting the points before each: for so few it costs less than a sort.
  squared_distance = _rounded(jnp.square(column * stride + origin[0] - x))
  squared_distance += _rounded(jnp.square(row * stride + origin[1] - y))
  squared_distance = jnp.where(exists, squared_distance, jnp.inf)
  index = row * columns + column
  this, other = (..., slice(None), None), (..., None, slice(None))
  before = squared_distance[other] < squared_distance[this]
  before |= (squared_distance[other] == squared_distance[this]) & (
    index[other] < index[this]
  )
  rank = jnp.where(exists, jnp.sum(before, axis=-1), top_k)

  nth = np.arange(min(top_k, rows * columns)).reshape(1, -1, 1)
  is_nth = rank[:, None] == nth
  column, row = (
    jnp.sum(jnp.where(is_nth, x[:, None], 0), axis=-1) for x in (column, row)
  )
  center = jnp.stack([column, row], axis=-1) * stride + origin.reshape(1, 1, 2)
  anchor = jnp.concatenate([center - half_side, center + half_side], axis=-1)
  index = first + row.astype(jnp.int32) * columns + column.astype(jnp.int32)
  return index, center, anchor, jnp.any(is_nth, axis=-1)


def _nearest(position, size, count):
  """The `count` of the whole numbers 0 .. size - 1 nearest to each position, in order.

  Positions [g, 1], result [g, count], float32. Ranks from `size` on have no meaning. Of
  two equally near numbers the lower is first.
  """
  # The rank + 1 nearest are neighbours: `low` is the first of them, and the newest is
  # either it or the last.
  rank = np.arange(count, dtype=np.float32)[None]
  low = jnp.clip(jnp.ceil(position - (rank + 1) / 2), 0, size - 1 - rank)
  previous_low = jnp.concatenate([low[:, :1] + 1, low[:, :-1]], axis=1)
  return jnp.where(low < previous_low, low, low + rank)


def _rounded(x):
  """x >= 0, rounded to float32 also where the compiler would fuse it with an addition.

  Without this, the two sides of a comparison may be computed apart, one by a fused
  multiply-add, and a number differ from itself. The integer maximum changes nothing but
  has to see the bits.
  """
  bits = jnp.maximum(jax.lax.bitcast_convert_type(x, jnp.int32), 0)
  return jax.lax.bitcast_convert_type(bits, x.dtype)


def _threshold(iou, chosen):
  """[g, 1] mean plus standard deviation (n - 1) of the chosen."""
  count = jnp.sum(chosen, axis=1, keepdims=True)
  mean = jnp.sum(jnp.where(chosen, iou, 0), axis=1, keepdims=True) / jnp.maximum(
    count, 1
  )
  squares = jnp.where(chosen, jnp.square(iou - mean), 0)
  variance = jnp.sum(squares, axis=1, keepdims=True) / jnp.maximum(count - 1, 1)
  return mean + jnp.sqrt(variance)


def _resolve(index, iou, positive, point_valid):
  """Gives each anchor the box of highest IoU among those that want it."""
  num_boxes, num_points = len(index), len(point_valid)
  nowhere = num_points  # scatters drop what lies out of bounds
  wanted = jnp.where(positive, index, nowhere)
  best_iou = jnp.zeros(num_points).at[wanted].max(iou, mode='drop')
  # Not ==: the compiler may compute an IoU twice, with different roundings.
  contested = best_iou[index]
  wins = positive & (contested > 0) & (iou >= contested * (1 - 1e-6))
  box = jnp.broadcast_to(jnp.arange(num_boxes, dtype=jnp.int32)[:, None], index.shape)
  matched = jnp.full(num_points, num_boxes, jnp.int32)
  matched = matched.at[jnp.where(wins, index, nowhere)].min(box, mode='drop')
  matched = jnp.where(matched < num_boxes, matched, BACKGROUND)
  best_iou = jnp.where(matched >= 0, best_iou, 0)
  return Assignment(jnp.where(point_valid, matched, IGNORED), best_iou)
