"""What the head's outputs mean for a box side: the three representations.

Head, objective and decoding read this one table.

  dirac     one number: the distance itself
  gaussian  two: the mean distance and the logarithm of its variance
  general   one per bin of a grid: a softmax distribution; its mean is the distance

Dirac's distance and Gaussian's mean are box.scale * exp(output). They are positive, and
before training equal to box.scale: with 1 as in FCOS, with half of anchor_scale the box
is the anchor at first, as in ATSS. All lengths are in strides of the anchor's level.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from gfl_jax.ops import distributions

_MAX_LOG_SCALE = 5.0  # a factor of 148: beyond any box of a pyramid, and finite


class Representation(NamedTuple):
  """One kind of box; each function also takes the config's `box` section.

  Attributes:
    num_outputs: how many numbers the head puts out for one side.
    distance: [*, 4, n] outputs to [*, 4] distances, in strides.
    std: [*, 4, n] outputs to [*, 4] standard deviations, in strides.
  """

  num_outputs: Callable[[Any], int]
  distance: Callable[[Float[Array, '*b 4 n'], Any], Float[Array, '*b 4']]
  std: Callable[[Float[Array, '*b 4 n'], Any], Float[Array, '*b 4']]


def bin_grid(box_config: Any) -> distributions.BinGrid:
  """The grid of the general representation."""
  return distributions.BinGrid(box_config.start, box_config.stop, box_config.num_bins)


def _exponential(outputs, box_config):
  return box_config.scale * jnp.exp(jnp.minimum(outputs[..., 0], _MAX_LOG_SCALE))


def _bin_mean(outputs, box_config):
  return distributions.expectation(outputs, bin_grid(box_config))


def _bin_std(outputs, box_config):
  return jnp.sqrt(distributions.variance(outputs, bin_grid(box_config)))


REPRESENTATIONS = {
  'dirac': Representation(
    lambda box_config: 1,
    _exponential,
    lambda outputs, box_config: jnp.zeros_like(outputs[..., 0]),
  ),
  'gaussian': Representation(
    lambda box_config: 2,
    _exponential,
    lambda outputs, box_config: jnp.exp(outputs[..., 1] / 2),
  ),
  'general': Representation(
    lambda box_config: box_config.num_bins, _bin_mean, _bin_std
  ),
}
