"""EfficientNet-Lite0: a backbone of 3.4 million parameters, for CPUs and phones."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from gfl_jax.models import norms, stages
from gfl_jax.ops.convolutions import depthwise_conv

_he_init = functools.partial(nn.initializers.variance_scaling, 2.0)
_conv = functools.partial(
  nn.Conv, use_bias=False, kernel_init=_he_init('fan_out', 'normal')
)
_STEM_CHANNELS = 32


class _Row(NamedTuple):
  """Blocks of one kind: the first has the stride, the others have stride 1."""

  repeats: int
  size: int
  stride: int
  expansion: int
  channels: int


_STAGES = (
  (_Row(1, 3, 1, 1, 16), _Row(2, 3, 2, 6, 24)),
  (_Row(2, 5, 2, 6, 40),),
  (_Row(3, 3, 2, 6, 80), _Row(3, 5, 1, 6, 112)),
  (_Row(4, 5, 2, 6, 192), _Row(1, 3, 1, 6, 320)),
)


class InvertedResidual(nn.Module):
  """A wide depthwise convolution between 1x1 convolutions, and a shortcut.

  Attributes:
    channels: of the output.
    size: of the depthwise filters.
    stride: of the depthwise convolution; with stride 1 and equal channels the input is
      added.
    expansion: channels of the depthwise convolution per channel of the input; with 1
      there is no first 1x1 convolution.
    norm: makes a normalization layer, given its name.
    dtype: type of the output; parameters are float32.
  """

  channels: int
  size: int
  stride: int
  expansion: int
  norm: Callable[..., nn.Module]
  dtype: DTypeLike

  @nn.compact
  def __call__(self, x: Float[Array, 'b h w c']) -> Float[Array, 'b h2 w2 c2']:
    width = x.shape[-1] * self.expansion
    y = x
    if self.expansion > 1:
      y = _conv(width, (1, 1), dtype=self.dtype, name='expand')(y)
      y = nn.relu6(self.norm(name='expand_norm')(y))
    y = _conv(
      width,
      (self.size, self.size),
      (self.stride, self.stride),
      feature_group_count=width,
      dtype=self.dtype,
      # Each filter has one input and one output; 'fan_out' would count all channels.
      kernel_init=_he_init('fan_in', 'normal'),
      conv_general_dilated=depthwise_conv,
      name='depthwise',
    )(y)
    y = nn.relu6(self.norm(name='depthwise_norm')(y))
    y = _conv(self.channels, (1, 1), dtype=self.dtype, name='project')(y)
    y = self.norm(name='project_norm')(y)
    return x + y if self.stride == 1 and y.shape == x.shape else y


class Stem(nn.Module):
  """A 3x3 convolution of stride 2."""

  norm: Callable[..., nn.Module]
  dtype: DTypeLike

  @nn.compact
  def __call__(self, images: Float[Array, 'b h w 3']) -> Float[Array, 'b h2 w2 c']:
    x = _conv(_STEM_CHANNELS, (3, 3), (2, 2), dtype=self.dtype, name='conv')(images)
    return nn.relu6(self.norm(name='norm')(x))


class Stage(nn.Module):
  """The blocks between two resolutions.

  Attributes:
    rows: kinds of blocks, in order.
    first: number of the first block: blocks are counted through all stages.
  """

  rows: tuple[_Row, ...]
  first: int
  norm: Callable[..., nn.Module]
  dtype: DTypeLike

  @nn.compact
  def __call__(self, x: Float[Array, 'b h w c']) -> Float[Array, 'b h2 w2 c2']:
    number = self.first
    for row in self.rows:
      for i in range(row.repeats):
        x = InvertedResidual(
          row.channels,
          row.size,
          row.stride if i == 0 else 1,
          row.expansion,
          self.norm,
          self.dtype,
          name=f'block{number}',
        )(x)
        number += 1
    return x


class EfficientNetLite0(nn.Module):
  """The backbone: an image to C2..C5 of 24, 40, 112 and 320 channels.

  These are the outputs of blocks 2, 4, 10 and 15, of strides 4, 8, 16 and 32; a level
  of stride s has ceil(height / s) rows. Padding is TensorFlow's 'SAME', which pads more
  after than before: on even sizes the view of cell (i, j) is centerd at (i, j) * s +
  s - 1/2, nearly a stride further to the lower right than with torch's padding.

  Attributes:
    norm, norm_groups, frozen_stages, remat, dtype: as in `ResNet`. The epsilon of
      'frozen_batch_norm' is 1e-3, and all layers have multiples of 8 channels.
  Source: EfficientNet (arXiv:1905.11946) without squeeze-and-excitation, with ReLU6
    for swish, as in tensorflow/tpu's efficientnet/lite.
  """

  norm: str = 'frozen_batch_norm'
  norm_groups: int = 8
  frozen_stages: int = 0
  remat: tuple[str, ...] = ()
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, images: Float[Array, 'b h w 3']) -> tuple[Array, ...]:
    """Normalized images [B, H, W, 3] to (C2, C3, C4, C5).

    Raises:
      ValueError: a setting out of the ranges above, named.
    """
    frozen = stages.frozen_names(self.frozen_stages)
    norm = norms.make_norm(self.norm, self.norm_groups, self.dtype, epsilon=1e-3)
    x = Stem(norm, self.dtype, name='stem')(images)
    features, first = [], 0
    for name, rows in zip(stages.STAGE_NAMES[1:], _STAGES, strict=True):
      stage = nn.remat(Stage) if name in self.remat else Stage
      x = stage(rows, first, norm, self.dtype, name=name)(x)
      first += sum(row.repeats for row in rows)
      if name in frozen:
        x = jax.lax.stop_gradient(x)
      features.append(x)
    return tuple(features)
