"""The points of a level nearest to boxes, found among few candidates."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from gfl_jax.ops.arrays import ArrayLike
from gfl_jax.ops.points import Points, level_slices


def nearest_points(
  boxes: Float[ArrayLike, 'g 4'],
  points: Points,
  level: int,
  point_valid: Bool[ArrayLike, ' a'],
  count: int,
) -> tuple[
  Int[Array, 'g k'], Float[Array, 'g k 2'], Float[Array, 'g k 4'], Bool[Array, 'g k']
]:
  """The `count` valid points of a level nearest to each box's center, nearest first.

  Equally distant points rank by index. If rows and columns are ranked by their distance
  from the center, then at least (a + 1) * (b + 1) points, itself included, are as near
  as the point of column rank a and row rank b. So only points for which this product is
  at most `count` can be among the nearest: 23 points for the 9 nearest, on any level.

  Args:
    boxes: in pixels of the network input.
    points: of the canvas.
    level: which level of the points.
    point_valid: which of all points may be found; a rectangle at the top left of each
      level.
    count: points per box, at least 1; of a level with fewer points all are found.

  Returns:
    Index, center (x, y) and anchor of the points, and whether they exist.
  """
  rows, columns = points.level_sizes[level]
  part = level_slices(points)[level]
  point_valid = jnp.asarray(point_valid[part]).reshape(rows, columns)
  valid_rows = jnp.sum(jnp.any(point_valid, axis=1))
  valid_columns = jnp.sum(jnp.any(point_valid, axis=0))
  first = part.start
  origin, stride = points.centers[first], points.strides[first]
  half_side = points.anchors[first, 2] - origin[0]

  ranks = [
    (a, b) for a in range(count) for b in range(count) if (a + 1) * (b + 1) <= count
  ]
  column_ranks, row_ranks = np.asarray(ranks).T
  x, y = jnp.split((boxes[:, :2] + boxes[:, 2:]) / 2, 2, axis=1)
  column = _nearest((x - origin[0]) / stride, valid_columns, count)[:, column_ranks]
  row = _nearest((y - origin[1]) / stride, valid_rows, count)[:, row_ranks]
  exists = (column_ranks[None] < valid_columns) & (row_ranks[None] < valid_rows)

  # The rank is the number of points before each: for so few, cheaper than a sort.
  squared_distance = _rounded(jnp.square(column * stride + origin[0] - x))
  squared_distance += _rounded(jnp.square(row * stride + origin[1] - y))
  squared_distance = jnp.where(exists, squared_distance, jnp.inf)
  index = row * columns + column
  this, other = (..., slice(None), None), (..., None, slice(None))
  before = squared_distance[other] < squared_distance[this]
  before |= (squared_distance[other] == squared_distance[this]) & (
    index[other] < index[this]
  )
  rank = jnp.where(exists, jnp.sum(before, axis=-1), count)

  nth = np.arange(min(count, rows * columns)).reshape(1, -1, 1)
  is_nth = rank[:, None] == nth
  column, row = (
    jnp.sum(jnp.where(is_nth, x[:, None], 0), axis=-1) for x in (column, row)
  )
  center = jnp.stack([column, row], axis=-1) * stride + origin.reshape(1, 1, 2)
  anchor = jnp.concatenate([center - half_side, center + half_side], axis=-1)
  index = first + row.astype(jnp.int32) * columns + column.astype(jnp.int32)
  return index, center, anchor, jnp.any(is_nth, axis=-1)


def _nearest(position, size, count):
  """The `count` whole numbers of 0 .. size - 1 nearest to each position, nearest first.

  Positions [g, 1], result [g, count], float32; columns from `size` on have no meaning.
  Of two equally near numbers the lower is first.
  """
  # The rank + 1 nearest numbers are consecutive, from `low` on. The one that this rank
  # adds is their first if `low` has moved, otherwise their last.
  rank = np.arange(count, dtype=np.float32)[None]
  low = jnp.clip(jnp.ceil(position - (rank + 1) / 2), 0, size - 1 - rank)
  previous_low = jnp.concatenate([low[:, :1] + 1, low[:, :-1]], axis=1)
  return jnp.where(low < previous_low, low, low + rank)


def _rounded(x):
  """x >= 0, rounded to float32 even where the compiler would fuse it with an addition.

  Without this, the compiler may compute the two sides of a comparison separately, one
  of them by a fused multiply-add, so that a number differs from itself. The maximum of
  integers changes no value but needs the rounded bits.
  """
  bits = jnp.maximum(jax.lax.bitcast_convert_type(x, jnp.int32), 0)
  return jax.lax.bitcast_convert_type(bits, x.dtype)
