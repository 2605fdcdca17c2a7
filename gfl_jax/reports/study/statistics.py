"""What a few seeds can tell: intervals, paired differences, corrections."""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from gfl_jax.errors import UserError

LEVEL = 0.95  # of all intervals; a difference counts where this interval excludes 0


class Estimate(NamedTuple):
  """The mean of `count` values and how well they determine it.

  Attributes:
    count: number of values, at least 1.
    mean: their mean.
    std: standard deviation with n - 1; None of one value.
    half_width: of the t interval of the mean at `LEVEL`; None of one value.
    p_value: of the two-sided t test that the true mean is 0; None of one value.
  """

  count: int
  mean: float
  std: float | None
  half_width: float | None
  p_value: float | None

  @property
  def is_beyond_noise(self) -> bool:
    """Whether the interval excludes 0; of one value, never."""
    return self.half_width is not None and abs(self.mean) > self.half_width


def estimate(values: Sequence[float]) -> Estimate | None:
  """Mean, standard deviation and t interval of independent values; None of no value.

  Values that are all equal have an interval of width 0 and a p value of 0 (1 if they
  are 0).
  """
  count = len(values)
  if not count:
    return None
  mean = float(np.mean(values))
  if count == 1:
    return Estimate(1, mean, None, None, None)
  std = float(np.std(values, ddof=1))
  error = std / math.sqrt(count)
  half_width = student_t_bound(LEVEL, count - 1) * error
  if error:
    p_value = 1 - student_t_within(abs(mean) / error, count - 1)
  else:
    p_value = float(mean == 0)
  return Estimate(count, mean, std, half_width, p_value)


def paired_difference(
  values: Mapping[int, float], baseline: Mapping[int, float]
) -> Estimate | None:
  """`estimate` of values - baseline, key by key, over the keys that both have.

  Args:
    values: seed to value. Runs of one seed share what the seed decides (start values,
      order of the data), so their difference is often less noisy than either.
    baseline: seed to value.
  """
  seeds = sorted(values.keys() & baseline.keys())
  return estimate([values[seed] - baseline[seed] for seed in seeds])


def student_t_within(t: float, degrees: int) -> float:
  """P(|T| <= t) of Student's t distribution with whole degrees of freedom.

  Args:
    t: at least 0; inf is allowed.
    degrees: of freedom, at least 1.

  Raises:
    ValueError: t is negative or NaN, or degrees is below 1.

  Source: Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.3 and 26.7.4,
  finite sums that are exact for every whole number of degrees.
  """
  if not t >= 0:
    raise UserError(f't must be at least 0, is {t}')
  if degrees < 1:
    raise UserError(f'degrees of freedom must be at least 1, are {degrees}')
  return _within_angle(math.atan(t / math.sqrt(degrees)), degrees)


@functools.cache
def student_t_bound(level: float, degrees: int) -> float:
  """The t with P(|T| <= t) = level: `student_t_within`, inverted by bisection.

  Args:
    level: above 0, below 1; 0.95 gives the half width of a 95 % interval in standard
      errors.
    degrees: of freedom, at least 1.

  Raises:
    ValueError: level or degrees is out of range.
  """
  if not 0 < level < 1:
    raise UserError(f'level must be between 0 and 1, is {level}')
  if degrees < 1:
    raise UserError(f'degrees of freedom must be at least 1, are {degrees}')
  low, high = 0.0, math.pi / 2
  for _ in range(60):  # halvings: to the last bit of the angle
    middle = (low + high) / 2
    if _within_angle(middle, degrees) < level:
      low = middle
    else:
      high = middle
  return math.sqrt(degrees) * math.tan(low)


def _within_angle(angle: float, degrees: int) -> float:
  """P(|T| <= sqrt(degrees) tan(angle))."""
  cosine_squared = math.cos(angle) ** 2
  is_odd = degrees % 2
  term, total = (math.cos(angle) if is_odd else 1.0), 0.0
  for k in range(2 + is_odd, degrees + 1, 2):
    total += term
    term *= cosine_squared * (k - 1) / k
  if is_odd:
    return 2 / math.pi * (angle + math.sin(angle) * total)
  return math.sin(angle) * total


def holm(p_values: Sequence[float]) -> list[float]:
  """Holm's corrected p values, in the order given.

  Calling those below 0.05 different makes one false call or more in at most 5 % of the
  studies, however many comparisons there are and however they depend on each other.

  Source: Holm, A simple sequentially rejective multiple test procedure, 1979.
  """
  corrected, floor = [0.0] * len(p_values), 0.0
  for rank, index in enumerate(np.argsort(p_values, kind='stable').tolist()):
    floor = max(floor, (len(p_values) - rank) * p_values[index])
    corrected[index] = min(1.0, floor)
  return corrected
