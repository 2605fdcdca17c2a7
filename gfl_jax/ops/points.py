"""The points (cells) of the pyramid levels, and the square anchors around them.

Geometry is static: `Points` holds NumPy arrays, which are constants of the programs
that use them. It is never an argument of a jitted function.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from gfl_jax.ops.arrays import ArrayLike


class Points(NamedTuple):
  """One point per cell, level after level, each level row by row.

  Attributes:
    centers: [A, 2] (x, y) in pixels of the network input.
    strides: [A] pixels between neighbors on the point's level.
    level_sizes: cells (rows, columns) of each level.
    anchors: [A, 4] square boxes around the centers, xyxy in pixels.
  """

  centers: np.ndarray
  strides: np.ndarray
  level_sizes: tuple[tuple[int, int], ...]
  anchors: np.ndarray


def make_points(
  image_size: Sequence[int],
  strides: Sequence[int],
  *,
  offset: float = 0.0,
  anchor_scale: float = 8,
) -> Points:
  """The points of a canvas.

  Args:
    image_size: (height, width) of the canvas in pixels; a level of stride s has
      ceil(height / s) x ceil(width / s) cells.
    strides: pixels per cell, one per level.
    offset: of the point within its cell, in strides: cell (i, j) lies at
      ((j + offset) * s, (i + offset) * s). 0 is the corner (mmdet's GFL), 0.5 the
      middle of the cell.
    anchor_scale: side of the anchors in strides.

  Raises:
    ValueError: a size, stride or anchor scale that is not positive, or no stride.

  Source: mmdet's AnchorGenerator(ratios=[1], octave_base_scale=8, center_offset=0).
  """
  height, width = image_size
  if min(height, width) < 1 or not strides or min(strides) < 1 or anchor_scale <= 0:
    raise ValueError(
      f'image_size={tuple(image_size)}, strides={tuple(strides)} and {anchor_scale=} '
      'must be positive'
    )
  centers, cell_strides, level_sizes = [], [], []
  for stride in strides:
    rows, columns = -(-height // stride), -(-width // stride)
    y, x = np.indices((rows, columns), np.float32).reshape(2, -1)
    cells = np.stack([x, y], -1)
    centers.append(cells * np.float32(stride) + np.float32(offset * stride))
    cell_strides.append(np.full(rows * columns, stride, np.float32))
    level_sizes.append((rows, columns))
  centers, cell_strides = np.concatenate(centers), np.concatenate(cell_strides)
  half_sides = cell_strides[:, None] * np.float32(anchor_scale / 2)
  anchors = np.concatenate([centers - half_sides, centers + half_sides], axis=1)
  return Points(centers, cell_strides, tuple(level_sizes), anchors)


def level_slices(points: Points) -> tuple[slice, ...]:
  """Where each level lies along the axis of the points."""
  ends = np.cumsum([rows * columns for rows, columns in points.level_sizes]).tolist()
  return tuple(slice(a, b) for a, b in zip([0, *ends[:-1]], ends, strict=True))


def point_validity(
  points: Points, image_sizes: Int[ArrayLike, '*b 2'], *, divisor: int = 32
) -> Bool[Array, '*b a']:
  """Which points an image may train on, if it is smaller than its canvas.

  With the image's size rounded up to a multiple of `divisor`, cell (i, j) of a level of
  stride s is valid if i < ceil(height / s) and j < ceil(width / s), independent of the
  points' offset. So on each level the valid cells are a rectangle at the top left. An
  image of size (0, 0) has none.

  Args:
    points: of the canvas.
    image_sizes: (height, width) of the images in pixels, before padding.
    divisor: pixels; the backbone's largest stride.

  Source: the anchors' valid_flags in mmdet, computed from an image's own pad_shape.
  """
  cells = [np.indices(size).reshape(2, -1) for size in points.level_sizes]
  # In whole numbers, i < ceil(height / s) is i * s < height.
  cells_px = np.concatenate(cells, axis=1).T * points.strides[:, None].astype(np.int32)
  padded_sizes = -(-jnp.asarray(image_sizes) // divisor) * divisor
  cells_px = np.expand_dims(cells_px, tuple(range(padded_sizes.ndim - 1)))
  return jnp.all(cells_px < padded_sizes[..., None, :], axis=-1)
