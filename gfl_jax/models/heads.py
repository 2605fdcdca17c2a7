"""The dense head: for every cell of every level class logits and box logits."""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from gfl_jax.errors import UserError
from gfl_jax.models import norms

_conv3 = functools.partial(
  nn.Conv, kernel_size=(3, 3), padding=1, kernel_init=nn.initializers.normal(0.01)
)


class Predictions(NamedTuple):
  """What the detector says about each of the A anchors; float32 in every mode.

  Anchors run level after level, each level row by row.

  Attributes:
    class_logits: [B, A, C], before the sigmoid; with a joint score, the sigmoid is
      class probability and localisation quality in one.
    box_logits: [B, A, 4, n], the n numbers of each side: left, top, right, bottom.
    quality_logits: [B, A, 1], or None if the score has no branch of its own.
  """

  class_logits: Float[Array, 'b a c']
  box_logits: Float[Array, 'b a 4 n']
  quality_logits: Float[Array, 'b a 1'] | None


class DenseHead(nn.Module):
  """Two towers of convolutions, for classes and boxes, shared by all levels.

  A learned scale per level multiplies the box logits (bias included). For distributions
  it acts as a temperature, not as a length.

  Attributes:
    num_classes: C.
    num_box_outputs: n, numbers per box side.
    quality_branch: whether the box tower has a second output, for the quality.
    channels: width of the towers.
    num_convs: 3x3 convolutions of each tower.
    norm_groups: groups of the towers' GroupNorm.
    prior_probability: class probability of every anchor before training.
    remat: whether the backward pass recomputes the towers' layers.
    dtype: type of the towers' features; parameters and outputs are float32.
  Source: GFL, arXiv:2006.04388; mmdet's GFLHead, and ATSSHead for the branch.
  """

  num_classes: int
  num_box_outputs: int
  quality_branch: bool = False
  channels: int = 256
  num_convs: int = 4
  norm_groups: int = 32
  prior_probability: float = 0.01
  remat: bool = False
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, levels: Sequence[Float[Array, 'b _ _ c']]) -> Predictions:
    """Features of all levels to Predictions.

    Raises:
      ValueError: a prior probability outside (0, 1).
    """
    prior = self.prior_probability
    if not 0 < prior < 1:
      raise UserError(f'head.prior_probability={prior} must lie in (0, 1)')
    prior_bias = -math.log((1 - prior) / prior)

    class_conv = self._output_conv('class_output', self.num_classes, prior_bias)
    classes = [_flatten(class_conv(x)) for x in self._tower('class', levels)]

    box_conv = self._output_conv('box_output', 4 * self.num_box_outputs, 0.0)
    box_features = self._tower('box', levels)
    boxes = []
    for i, x in enumerate(box_features):
      scale = self.param(f'scale{i}', nn.initializers.ones, (), jnp.float32)
      boxes.append(_flatten(box_conv(x)) * scale)

    quality_logits = None
    if self.quality_branch:
      quality_conv = self._output_conv('quality_output', 1, 0.0)
      quality = [_flatten(quality_conv(x)) for x in box_features]
      quality_logits = jnp.concatenate(quality, axis=1)

    class_logits = jnp.concatenate(classes, axis=1)
    box_logits = jnp.concatenate(boxes, axis=1)
    sides = (*box_logits.shape[:2], 4, self.num_box_outputs)
    return Predictions(class_logits, box_logits.reshape(sides), quality_logits)

  def _tower(self, name: str, levels: Sequence[Array]) -> Sequence[Array]:
    for i in range(self.num_convs):
      layer = functools.partial(_tower_layer, name=name, number=i)
      levels = (nn.remat(layer) if self.remat else layer)(self, levels)
    return levels

  def _output_conv(self, name: str, features: int, bias: float) -> nn.Conv:
    bias_init = nn.initializers.constant(bias)
    return _conv3(features, dtype=self.dtype, bias_init=bias_init, name=name)


def _tower_layer(
  head: DenseHead, levels: Sequence[Array], *, name: str, number: int
) -> Sequence[Array]:
  """Convolution, norm and ReLU, the same on all levels."""
  names = f'{name}_conv{number}', f'{name}_norm{number}'
  conv = _conv3(head.channels, use_bias=False, dtype=head.dtype, name=names[0])
  norm = norms.GroupNorm(head.norm_groups, head.dtype, name=names[1])
  return [nn.relu(norm(conv(x))) for x in levels]


def _flatten(x: Array) -> Array:
  """[B, H, W, C] to float32 [B, H * W, C]."""
  return x.astype(jnp.float32).reshape(x.shape[0], -1, x.shape[-1])
