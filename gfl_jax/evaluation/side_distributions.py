"""How well predicted distributions of sides fit the annotated sides.

The three representations as continuous distributions of a side's distance, in strides,
so that the same measures apply to all:

  general   piecewise linear: a mixture of triangles, one for each bin, from the bin
            before it to the bin after it, as DFL interpolates; at the two ends of the
            grid half triangles of the same mass. The density is piecewise linear on
            [start, stop] and 0 beyond. A single bin has a std of 0.41 bins.
  gaussian  the normal distribution of the predicted mean and variance
  dirac     a normal distribution with one constant std, computed from the errors
            themselves. This favours Dirac, because the others must predict their std.
            Its CRPS is that of the prediction itself, the absolute error.

NumPy on the host, in float64; evaluation only.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import scipy.special

from gfl_jax.models.representations import bin_grid

_TINIEST_STD = 1e-6  # strides; keeps every quotient finite


class SideFit(NamedTuple):
  """How well each predicted distribution fits the annotated distance.

  Attributes:
    cdf: [*] at the annotated distance; uniform over many sides if the distributions
      are right. nan for Dirac, where one side alone does not tell.
    density: [*] at the annotated distance, per stride; nan as for `cdf`.
    crps: [*] continuous ranked probability score, the integral of
      (CDF - 1[x >= annotated])^2, in strides; 0 is perfect.
  """

  cdf: np.ndarray
  density: np.ndarray
  crps: np.ndarray


def normal(error: np.ndarray, std: np.ndarray | float) -> SideFit:
  """Normal distributions; error: annotated distance - mean [*], in strides.

  Source: Gneiting and Raftery 2007, eq. 21, for the CRPS.
  """
  std = np.maximum(np.asarray(std, np.float64), _TINIEST_STD)
  z = np.asarray(error, np.float64) / std
  bell = np.exp(-0.5 * np.square(z)) / math.sqrt(2 * math.pi)
  cdf = scipy.special.ndtr(z)
  crps = std * (z * (2 * cdf - 1) + 2 * bell - 1 / math.sqrt(math.pi))
  return SideFit(cdf, bell / std, crps)


def piecewise_linear(
  probabilities: np.ndarray, targets: np.ndarray, grid: Any
) -> SideFit:
  """Distributions with a piecewise linear density over a grid; see the module.

  Args:
    probabilities: [*, bins], each summing to 1.
    targets: [*] annotated distances in strides, also beyond the grid.
    grid: the BinGrid.
  """
  width = grid.width
  # The density at the bins; between them it is linear.
  knots = np.array(probabilities, np.float64) / width
  knots[..., [0, -1]] *= 2
  rise = np.diff(knots)
  mass = width * (knots[..., :-1] + 0.5 * rise)  # of each cell between two bins
  below = np.cumsum(mass, -1) - mass  # CDF at the cells' left ends

  place = (np.asarray(targets, np.float64) - grid.start) / width
  inside = (place >= 0) & (place <= grid.num_bins - 1)
  cell = np.clip(place.astype(int), 0, grid.num_bins - 2)[..., None]
  at = lambda values: np.take_along_axis(values, cell, -1)[..., 0]
  s = np.clip(place - cell[..., 0], 0, 1)  # position within the cell
  density = np.where(inside, at(knots) + s * at(rise), 0.0)
  cdf = at(below) + width * s * (at(knots) + 0.5 * s * at(rise))

  # CRPS = integral over the grid of (1 - CDF)^2, and from its start to the target of
  # 2 CDF - 1. In a cell, 1 - CDF is a + b s + c s^2.
  a, b, c = 1 - below, -width * knots[..., :-1], -0.5 * width * rise
  squares = a**2 + a * b + (b**2 + 2 * a * c) / 3 + b * c / 2 + c**2 / 5
  area = width * (below + width * (knots[..., :-1] / 2 + rise / 6))  # of the CDF
  before = np.cumsum(area, -1) - area
  part = s * at(below) + width * s**2 * (at(knots[..., :-1]) / 2 + s * at(rise) / 6)
  area_to_target = at(before) + width * part
  beyond = np.maximum(place - (grid.num_bins - 1), 0) * width  # there the CDF is 1
  crps = width * squares.sum(-1) + 2 * (area_to_target + beyond) - place * width
  return SideFit(cdf, density, crps)


def bin_probabilities(outputs: np.ndarray) -> np.ndarray:
  """The softmax of the head's outputs [*, bins], in float64."""
  return scipy.special.softmax(outputs.astype(np.float64), -1)


def _dirac(outputs, errors, std, targets, box_config) -> SideFit:
  unknown = np.full(errors.shape, np.nan)
  return SideFit(unknown, unknown, np.abs(errors))


def _gaussian(outputs, errors, std, targets, box_config) -> SideFit:
  return normal(errors, std)


def _general(outputs, errors, std, targets, box_config) -> SideFit:
  return piecewise_linear(bin_probabilities(outputs), targets, bin_grid(box_config))


# box.kind -> f(outputs [*, 4, n], errors, std and targets [*, 4], config.box), in
# strides. An error is annotated - predicted distance, a target the annotated distance.
FITS: dict[str, Callable[..., SideFit]] = {
  'dirac': _dirac,
  'gaussian': _gaussian,
  'general': _general,
}
