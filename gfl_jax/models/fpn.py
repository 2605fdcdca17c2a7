"""Feature pyramid: C3..C5 of the backbone to P3..P7 of one width."""

import functools
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from gfl_jax.errors import UserError


class FPN(nn.Module):
  """Feature pyramid network; levels beyond P5 are convolved from the level below.

  Attributes:
    channels: channels of every level.
    num_levels: 3 (P3..P5), 4 or 5 (P3..P7).
    dtype: type of the features; parameters are float32.
  Source: arXiv:1612.03144; mmdet's FPN with start_level=1,
    add_extra_convs='on_output' (P6 from the output P5, no ReLU before P7).
  """

  channels: int = 256
  num_levels: int = 5
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(
    self, features: Sequence[Float[Array, 'b _ _ _']]
  ) -> tuple[Float[Array, 'b _ _ c'], ...]:
    """(C3, C4, C5) to (P3, P4, ...), strides 8, 16, ...

    Raises:
      ValueError: num_levels outside 3..5.
    """
    if self.num_levels not in (3, 4, 5):
      raise UserError(f'neck.num_levels={self.num_levels} must be 3, 4 or 5')
    init = nn.initializers.xavier_uniform()
    conv = functools.partial(nn.Conv, self.channels, dtype=self.dtype, kernel_init=init)
    conv3 = functools.partial(conv, (3, 3), padding=1)
    merged = [conv((1, 1), name=f'lateral{i}')(x) for i, x in enumerate(features)]
    for i in reversed(range(len(merged) - 1)):
      merged[i] += upsample_nearest(merged[i + 1], merged[i].shape[1:3])
    levels = [conv3(name=f'output{i}')(x) for i, x in enumerate(merged)]
    for i in range(len(levels), self.num_levels):
      levels.append(conv3(strides=2, name=f'output{i}')(levels[-1]))
    return tuple(levels)


def upsample_nearest(
  x: Float[Array, 'b h w c'], size: tuple[int, ...]
) -> Float[Array, 'b h2 w2 c']:
  """Doubles height and width and cuts the result to `size`.

  The sizes of neighboring levels are n and ceil(n / 2). For them, odd sizes included,
  this equals torch's nearest-neighbor interpolation to `size`, without a gather.

  Args:
    x: features of a level.
    size: (height, width) of the next finer level.

  Raises:
    ValueError: x is not half of `size`, rounded up.
  """
  height, width = size
  if x.shape[1:3] != (-(-height // 2), -(-width // 2)):
    raise UserError(f'{x.shape[1:3]=} must be half of {size=}, rounded up')
  # Both axes at once, so that the gradient is one sum over both.
  batch, rows, columns, channels = x.shape
  pairs = (batch, rows, 2, columns, 2, channels)
  x = jnp.broadcast_to(x[:, :, None, :, None], pairs)
  x = x.reshape(batch, 2 * rows, 2 * columns, channels)
  for axis, length in ((1, height), (2, width)):
    if x.shape[axis] > length:  # indexing is a gather where the batch size is symbolic
      x = jax.lax.slice_in_dim(x, 0, length, axis=axis)
  return x
