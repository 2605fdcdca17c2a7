"""What a few seeds can tell: intervals, paired differences, corrections."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import scipy.stats

LEVEL = 0.95  # of all intervals; a difference counts where this interval excludes 0


class Estimate(NamedTuple):
  """The mean of `count` values and how well they determine it.

  Attributes:
    count: number of values, at least 1.
    mean: their mean.
    std: standard deviation with n - 1; None for one value.
    half_width: of the t interval of the mean at `LEVEL`; None for one value.
    p_value: of the two-sided t test that the true mean is 0; None for one value.
  """

  count: int
  mean: float
  std: float | None
  half_width: float | None
  p_value: float | None

  @property
  def is_beyond_noise(self) -> bool:
    """Whether the interval excludes 0; never for one value."""
    return self.half_width is not None and abs(self.mean) > self.half_width


def estimate(values: Iterable[float | None]) -> Estimate | None:
  """Mean, standard deviation and t interval of independent values; None without any.

  A value of None is left out. Values that are all equal have an interval of width 0 and
  a p value of 0 (1 if they are 0).
  """
  values = [value for value in values if value is not None]
  if not values:
    return None
  count, mean = len(values), float(np.mean(values))
  if count == 1:
    return Estimate(1, mean, None, None, None)
  std = float(np.std(values, ddof=1))
  error, student = std / math.sqrt(count), scipy.stats.t(count - 1)
  p_value = 2 * student.sf(abs(mean) / error) if error else mean == 0
  half_width = student.ppf((1 + LEVEL) / 2) * error
  return Estimate(count, mean, std, float(half_width), float(p_value))


def paired_differences(
  values: Mapping[int, float], baseline: Mapping[int, float]
) -> dict[int, float]:
  """values - baseline by seed, for the seeds that both have.

  Runs of one seed share what the seed decides (start values, order of the data), so
  their difference is often less noisy than either value.
  """
  seeds = sorted(values.keys() & baseline.keys())
  return {seed: values[seed] - baseline[seed] for seed in seeds}


def holm(p_values: Sequence[float | None]) -> list[float | None]:
  """Holm's corrected p values, in the order given; None stays None and is not counted.

  If differences with a corrected p value below 0.05 are called real, at most 5 % of
  all studies contain a false call, whatever the number of comparisons and however
  they depend on each other.

  Source: Holm, A simple sequentially rejective multiple test procedure, 1979.
  """
  known = sorted((p, index) for index, p in enumerate(p_values) if p is not None)
  corrected: list[float | None] = [None] * len(p_values)
  floor = 0.0
  for rank, (p, index) in enumerate(known):
    floor = max(floor, (len(known) - rank) * p)
    corrected[index] = min(1.0, floor)
  return corrected
