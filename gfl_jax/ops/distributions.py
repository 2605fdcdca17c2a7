"""Discrete distributions over a grid of bins: one box side is softmax(bin_logits).

All functions take logits [*, n] and return one number [*] each, in the grid's unit and
in float32 (float64 for float64 logits), with any default precision of the device.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from gfl_jax.ops.arrays import ArrayLike, at_least_float32


@dataclasses.dataclass(frozen=True)
class BinGrid:
  """Values at equal distances, both ends included; hashable, so it can be static.

  GFL's reg_max = 16 is BinGrid(0, 16, 17): 17 bins, at 0, 1, ..., 16 strides.

  Attributes:
    start: value of the first bin, in strides.
    stop: value of the last bin, in strides.
    num_bins: how many bins, at least 2.

  Raises:
    ValueError: fewer than two bins, or a stop that is not beyond the start.
  """

  start: float
  stop: float
  num_bins: int

  def __post_init__(self):
    if self.num_bins < 2:
      raise ValueError(f'num_bins={self.num_bins}: a grid needs at least 2 bins')
    if not self.start < self.stop:
      raise ValueError(f'stop={self.stop} must be beyond start={self.start}')

  @property
  def width(self) -> float:
    """Distance between neighboring bins, in strides."""
    return (self.stop - self.start) / (self.num_bins - 1)

  @property
  def values(self) -> np.ndarray:
    """[num_bins] float32, in strides."""
    return np.linspace(self.start, self.stop, self.num_bins, dtype=np.float32)


def check_bins(bin_logits: ArrayLike, grid: BinGrid) -> None:
  """Raises ValueError unless the last axis of the logits has the grid's bins."""
  if bin_logits.ndim < 1 or bin_logits.shape[-1] != grid.num_bins:
    raise ValueError(f'{bin_logits.shape=} must end in the bins of {grid}')


def clamp_targets(targets: Float[ArrayLike, '*n'], grid: BinGrid) -> Float[Array, '*n']:
  """Targets moved to just inside the grid: [start, stop - 0.1 bins].

  The last tenth of a bin is left out for parity with the authors' code, which needs a
  bin to the right of every target. A side whose target is changed here cannot be
  learned, so the share of such sides is worth logging.

  Source: mmdet's bbox2distance(..., max_dis=reg_max, eps=0.1).
  """
  return jnp.clip(targets, grid.start, grid.stop - 0.1 * grid.width)


def expectation(
  bin_logits: Float[ArrayLike, '*n bins'], grid: BinGrid
) -> Float[Array, '*n']:
  """Mean of the distribution: sum of probability times value, in strides.

  Raises:
    ValueError: the last axis is not the grid's number of bins.

  Source: GFL, arXiv:2006.04388, eq. 5 (mmdet's Integral).
  """
  check_bins(bin_logits, grid)
  (bin_logits,) = at_least_float32(bin_logits)
  # The default precision of TPUs (bfloat16) and of some GPUs (TF32) would round the
  # probabilities and move a side by up to 1/500 of its distance.
  return jnp.matmul(
    jax.nn.softmax(bin_logits), grid.values, precision=jax.lax.Precision.HIGHEST
  )


def variance(
  bin_logits: Float[ArrayLike, '*n bins'], grid: BinGrid
) -> Float[Array, '*n']:
  """Mean squared distance from the mean, in strides squared; 0 if one bin has all.

  Raises:
    ValueError: the last axis is not the grid's number of bins.
  """
  (bin_logits,) = at_least_float32(bin_logits)
  mean = expectation(bin_logits, grid)
  values = np.expand_dims(grid.values, tuple(range(mean.ndim)))
  squares = jnp.square(values - mean[..., None])
  return jnp.sum(jax.nn.softmax(bin_logits) * squares, axis=-1)


def quantile(
  bin_logits: Float[ArrayLike, '*n bins'], grid: BinGrid, *, q: float
) -> Float[Array, '*n']:
  """The value, in strides, below which a share q of the distribution lies.

  The mass of a bin is spread evenly over half a bin on either side of its value. So the
  cumulative distribution is piecewise linear, and a distribution in a single bin has
  its median at that bin. Results are clipped to [start, stop]. If several values fit
  (a gap without mass), the smallest is returned.

  Args:
    bin_logits: before the softmax.
    grid: the values of the bins.
    q: share in [0, 1]; 0.5 is the median.

  Raises:
    ValueError: q outside [0, 1], or the last axis is not the grid's number of bins.
  """
  check_bins(bin_logits, grid)
  if not 0 <= q <= 1:
    raise ValueError(f'{q=} must be in [0, 1]')
  (bin_logits,) = at_least_float32(bin_logits)
  mass = jax.nn.softmax(bin_logits)
  below = jnp.cumsum(mass, axis=-1) - mass
  # Bins below the quantile count fully, its own bin in part, the others not at all.
  parts = jnp.clip((q - below) / jnp.maximum(mass, 1e-12), 0, 1)
  value = grid.start - grid.width / 2 + grid.width * jnp.sum(parts, axis=-1)
  return jnp.clip(value, grid.start, grid.stop)
