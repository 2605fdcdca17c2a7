"""Normalization layers: BatchNorm with fixed statistics, and GroupNorm."""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from gfl_jax.config import choose
from gfl_jax.errors import UserError

_EPSILON = 1e-5  # torch's default; Flax's own is 1e-6


class FrozenBatchNorm(nn.Module):
  """BatchNorm whose statistics never change; its scale and bias are trained.

  Detectors train with too few images per device to estimate statistics, so those of the
  pretrained backbone stay. They are in the collection `batch_stats`.

  Attributes:
    dtype: type of the output; the arithmetic is float32.
    epsilon: added to the variance; must be the one of the pretraining.
  Source: norm_eval=True of mmdet's recipes.
  """

  dtype: DTypeLike = jnp.float32
  epsilon: float = _EPSILON

  @nn.compact
  def __call__(self, x: Float[Array, 'b h w c']) -> Float[Array, 'b h w c']:
    """(x - mean) / sqrt(var + epsilon) * scale + bias, per channel."""
    shape = (x.shape[-1],)
    mean = self.variable('batch_stats', 'mean', jnp.zeros, shape, jnp.float32)
    var = self.variable('batch_stats', 'var', jnp.ones, shape, jnp.float32)
    scale = self.param('scale', nn.initializers.ones, shape, jnp.float32)
    bias = self.param('bias', nn.initializers.zeros, shape, jnp.float32)
    gain = scale * jax.lax.rsqrt(var.value + self.epsilon)
    offset = bias - mean.value * gain
    y = x.astype(jnp.float32) * gain[None, None, None] + offset[None, None, None]
    return y.astype(self.dtype)


class GroupNorm(nn.Module):
  """GroupNorm over height, width and the channels of a group, image by image.

  Attributes:
    num_groups: into which consecutive channels are split evenly.
    dtype: type of the output; statistics and arithmetic are float32.
  Source: arXiv:1803.08494; epsilon 1e-5 and the biased variance as in torch.
  """

  num_groups: int
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, 'b h w c']) -> Float[Array, 'b h w c']:
    """(x - mean) / sqrt(var + 1e-5) * scale + bias.

    Raises:
      ValueError: the number of groups does not divide the channels.
    """
    batch, channels = x.shape[0], x.shape[-1]
    if self.num_groups < 1 or channels % self.num_groups:
      raise UserError(
        f'norm_groups={self.num_groups} must divide the {channels} channels of the'
        f' layer {self.name}; change one of the two'
      )
    scale = self.param('scale', nn.initializers.ones, (channels,), jnp.float32)
    bias = self.param('bias', nn.initializers.zeros, (channels,), jnp.float32)

    def group_mean(per_channel):
      groups = per_channel.reshape(batch, self.num_groups, -1).mean(-1)
      return jnp.repeat(groups, channels // self.num_groups, axis=-1)[:, None, None]

    # Sums per channel first: they run along contiguous memory. Two passes, because
    # mean(x^2) - mean(x)^2 loses the digits of a variance far below mean^2.
    x = x.astype(jnp.float32)
    centerd = x - group_mean(x.mean((1, 2)))
    variance = group_mean((centerd * centerd).mean((1, 2)))
    gain = jax.lax.rsqrt(variance + _EPSILON) * scale[None, None, None]
    y = centerd * gain + bias[None, None, None]
    return y.astype(self.dtype)


def make_norm(
  kind: str, num_groups: int, dtype: DTypeLike, *, epsilon: float = _EPSILON
) -> Callable[..., nn.Module]:
  """A function that makes a normalization layer of a backbone, given its name.

  Args:
    kind: 'frozen_batch_norm' or 'group_norm'.
    num_groups: of 'group_norm'.
    dtype: type of the layers' outputs.
    epsilon: of 'frozen_batch_norm'.

  Raises:
    ValueError: an unknown kind.
  """
  kinds = {
    'frozen_batch_norm': functools.partial(FrozenBatchNorm, epsilon=epsilon),
    'group_norm': functools.partial(GroupNorm, num_groups),
  }
  return functools.partial(choose(kinds, kind, 'backbone.norm'), dtype=dtype)
