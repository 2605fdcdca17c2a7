"""What a few seeds can tell: intervals, paired differences, corrections."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import scipy.stats

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
  student = scipy.stats.t(count - 1)
  half_width = float(student.ppf((1 + LEVEL) / 2)) * error
  if error:
    p_value = float(2 * student.sf(abs(mean) / error))
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
