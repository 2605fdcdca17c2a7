"""ResNet-10/18/34/50/101 and ResNeXt as in torchvision.

The stride of a bottleneck is in its 3x3 convolution.
"""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from gfl_jax.config import choose
from gfl_jax.errors import UserError
from gfl_jax.models import norms, stages
from gfl_jax.ops.convolutions import image_conv

# He initialization by the number of outputs, as in torchvision: it keeps the scale of
# the gradients through a stack of ReLU layers.
_KERNEL_INIT = nn.initializers.variance_scaling(2.0, 'fan_out', 'normal')


class BasicBlock(nn.Module):
  """Two 3x3 convolutions and a shortcut (ResNet-10, 18, 34)."""

  planes: int
  stride: int
  conv: Callable[..., nn.Module]
  norm: Callable[..., nn.Module]

  @nn.compact
  def __call__(self, x: Float[Array, 'b h w c']) -> Float[Array, 'b h2 w2 c2']:
    y = self.conv(self.planes, (3, 3), self.stride, padding=1, name='conv1')(x)
    y = nn.relu(self.norm(name='norm1')(y))
    y = self.conv(self.planes, (3, 3), padding=1, name='conv2')(y)
    y = self.norm(name='norm2')(y)
    return nn.relu(y + _shortcut(self, x, y.shape[-1]))


class Bottleneck(nn.Module):
  """1x1, 3x3 and 1x1 convolutions and a shortcut (ResNet-50, 101 and ResNeXt).

  The 3x3 convolution has `groups` groups of planes * group_width / 64 channels.
  """

  planes: int
  stride: int
  conv: Callable[..., nn.Module]
  norm: Callable[..., nn.Module]
  groups: int
  group_width: int

  @nn.compact
  def __call__(self, x: Float[Array, 'b h w c']) -> Float[Array, 'b h2 w2 c2']:
    groups, stride = self.groups, self.stride
    width = self.planes * self.group_width // 64 * groups
    y = self.conv(width, (1, 1), name='conv1')(x)
    y = nn.relu(self.norm(name='norm1')(y))
    y = self.conv(
      width, (3, 3), stride, padding=1, feature_group_count=groups, name='conv2'
    )(y)
    y = nn.relu(self.norm(name='norm2')(y))
    y = self.conv(4 * self.planes, (1, 1), name='conv3')(y)
    y = self.norm(name='norm3')(y)
    return nn.relu(y + _shortcut(self, x, y.shape[-1]))


_BLOCKS = {
  10: (BasicBlock, (1, 1, 1, 1)),
  18: (BasicBlock, (2, 2, 2, 2)),
  34: (BasicBlock, (3, 4, 6, 3)),
  50: (Bottleneck, (3, 4, 6, 3)),
  101: (Bottleneck, (3, 4, 23, 3)),
}


class Conv7Stem(nn.Module):
  """Image to stride 4, as in torchvision: 7x7 convolution of stride 2, max-pooling."""

  width: int
  conv: Callable[..., nn.Module]
  norm: Callable[..., nn.Module]

  @nn.compact
  def __call__(self, images: Float[Array, 'b h w 3']) -> Float[Array, 'b h2 w2 c']:
    x = self.conv(
      self.width, (7, 7), 2, padding=3, conv_general_dilated=image_conv, name='conv'
    )(images)
    x = nn.relu(self.norm(name='norm')(x))
    return nn.pool(x, -jnp.inf, jax.lax.max, (3, 3), (2, 2), ((1, 1), (1, 1)))


class Patch4Stem(nn.Module):
  """Image to stride 4 by one 4x4 convolution: far cheaper on small images."""

  width: int
  conv: Callable[..., nn.Module]
  norm: Callable[..., nn.Module]

  @nn.compact
  def __call__(self, images: Float[Array, 'b h w 3']) -> Float[Array, 'b h2 w2 c']:
    height, width = images.shape[1:3]
    padding = ((0, -height % 4), (0, -width % 4))  # the last rows get a cell, too
    x = self.conv(self.width, (4, 4), 4, padding=padding, name='conv')(images)
    return nn.relu(self.norm(name='norm')(x))


_STEMS = {'conv7': Conv7Stem, 'patch4': Patch4Stem}


class Stage(nn.Module):
  """A row of residual blocks, the first of which may have stride 2."""

  block: Callable[..., nn.Module]
  num_blocks: int
  stride: int

  @nn.compact
  def __call__(self, x: Float[Array, 'b h w c']) -> Float[Array, 'b h2 w2 c2']:
    for i in range(self.num_blocks):
      x = self.block(stride=self.stride if i == 0 else 1, name=f'block{i}')(x)
    return x


class ResNet(nn.Module):
  """The backbone: an image to C2..C5, the features of strides 4, 8, 16 and 32.

  Padding is explicit and symmetric, as in torch, so a level of stride s has
  ceil(height / s) rows and pretrained weights see what they were trained on.

  Attributes:
    depth: 10, 18, 34, 50 or 101.
    widths: planes of the four stages; bottlenecks have 4 times as many output channels.
    groups: of the 3x3 convolutions of bottlenecks; 1 for ResNet.
    group_width: channels of such a group in a stage of 64 planes, growing in proportion
      to the planes. ResNeXt-101-32x4d has depth 101, groups 32, group_width 4.
    stem: 'conv7' or 'patch4', see Conv7Stem and Patch4Stem.
    norm: 'frozen_batch_norm' (statistics in `batch_stats`) or 'group_norm'.
    norm_groups: groups of 'group_norm'.
    frozen_stages: 0 trains everything; n in 1..4 freezes the stem and stages 1..n:
      no gradient is computed for them.
    remat: stages whose activations the backward pass recomputes.
    dtype: type of the features; parameters are float32.
  Source: arXiv:1512.03385, 1611.05431; torchvision's resnet.py, whose width_per_group
    is group_width.
  """

  depth: int
  widths: tuple[int, ...] = (64, 128, 256, 512)
  groups: int = 1
  group_width: int = 64
  stem: str = 'conv7'
  norm: str = 'frozen_batch_norm'
  norm_groups: int = 32
  frozen_stages: int = 0
  remat: tuple[str, ...] = ()
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, images: Float[Array, 'b h w 3']) -> tuple[Array, ...]:
    """Normalized images [B, H, W, 3] to (C2, C3, C4, C5).

    Raises:
      ValueError: a setting out of the ranges above, named.
    """
    if len(self.widths) != 4:
      raise UserError(f'backbone.widths={self.widths}: one width for each of 4 stages')
    frozen = stages.frozen_names(self.frozen_stages)
    block, num_blocks = self._blocks()
    stem = choose(_STEMS, self.stem, 'backbone.stem')
    norm = norms.make_norm(self.norm, self.norm_groups, self.dtype)
    conv = functools.partial(
      nn.Conv, padding=0, use_bias=False, dtype=self.dtype, kernel_init=_KERNEL_INIT
    )

    x = stem(self.widths[0], conv, norm, name='stem')(images)
    features = []
    for i, name in enumerate(stages.STAGE_NAMES[1:]):
      stage_block = functools.partial(block, self.widths[i], conv=conv, norm=norm)
      stage = nn.remat(Stage) if name in self.remat else Stage
      x = stage(stage_block, num_blocks[i], stride=1 if i == 0 else 2, name=name)(x)
      if name in frozen:
        x = jax.lax.stop_gradient(x)
      features.append(x)
    return tuple(features)

  def _blocks(self) -> tuple[Callable[..., nn.Module], tuple[int, ...]]:
    """The kind of block, and the number of them in each stage."""
    block, num_blocks = choose(_BLOCKS, self.depth, 'backbone.depth')
    if block is BasicBlock:
      if (self.groups, self.group_width) != (1, 64):
        raise UserError(
          f'backbone.groups={self.groups}, group_width={self.group_width}: a ResNet of'
          f' depth={self.depth} has no bottlenecks to group; set groups=1 and'
          ' group_width=64'
        )
      return block, num_blocks
    if self.groups < 1 or min(self.widths) * self.group_width < 64:
      raise UserError(
        f'backbone.groups={self.groups}, group_width={self.group_width}, widths='
        f'{self.widths}: groups must be at least 1, and so must the channels of a'
        ' group, width * group_width / 64'
      )
    grouped = functools.partial(block, groups=self.groups, group_width=self.group_width)
    return grouped, num_blocks


def _shortcut(block: BasicBlock | Bottleneck, x: Array, channels: int) -> Array:
  """The block's input, projected where the shape changes."""
  if block.stride == 1 and x.shape[-1] == channels:
    return x
  x = block.conv(channels, (1, 1), block.stride, name='downsample_conv')(x)
  return block.norm(name='downsample_norm')(x)
