import math

import hypothesis
import jax
import numpy as np
import pytest
from hypothesis import strategies as st

from gfl_jax.reports.study import statistics


def density(t, degrees):
  log = math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2)
  scale = math.exp(log) / math.sqrt(degrees * math.pi)
  return scale * (1 + t**2 / degrees) ** (-(degrees + 1) / 2)


@pytest.mark.parametrize('degrees', [1, 2, 3, 4, 5, 9, 10, 31])
def test_t_probabilities_are_the_integral_of_the_density(degrees):
  t = np.linspace(0, 4, 4001)
  height = density(t, degrees)
  for end in (500, 2000, 4000):
    integral = np.trapezoid(height[: end + 1], t[: end + 1])
    within = statistics.student_t_within(t[end], degrees)
    assert within == pytest.approx(2 * integral, abs=1e-6)


@pytest.mark.parametrize('degrees', [1, 2, 7, 12])
def test_t_probabilities_are_an_incomplete_beta_function(degrees):
  for t in (0.0, 0.3, 2.5, 40.0):
    outside = jax.scipy.special.betainc(degrees / 2, 0.5, degrees / (degrees + t * t))
    within = statistics.student_t_within(t, degrees)
    assert within == pytest.approx(1 - float(outside), abs=1e-5)


def test_t_bounds_have_their_closed_forms():
  for level in (0.5, 0.95, 0.999):
    one = math.tan(math.pi / 2 * level)
    two = level * math.sqrt(2 / (1 - level**2))
    assert statistics.student_t_bound(level, 1) == pytest.approx(one, rel=1e-9)
    assert statistics.student_t_bound(level, 2) == pytest.approx(two, rel=1e-9)
  # Many degrees: the normal distribution's.
  assert statistics.student_t_bound(0.95, 10**4) == pytest.approx(1.959964, abs=3e-4)


def test_t_needs_degrees_and_a_level():
  assert statistics.student_t_within(math.inf, 3) == pytest.approx(1)
  for bad in (-1.0, math.nan):
    with pytest.raises(ValueError, match=f'at least 0, is {bad}'):
      statistics.student_t_within(bad, 3)
  for bad in (0.0, 1.0):
    with pytest.raises(ValueError, match=f'between 0 and 1, is {bad}'):
      statistics.student_t_bound(bad, 3)
  for function in (statistics.student_t_within, statistics.student_t_bound):
    with pytest.raises(ValueError, match='at least 1, are 0'):
      function(0.5, 0)


def test_an_estimate_by_hand():
  found = statistics.estimate([1.0, 2.0, 3.0])
  assert (found.count, found.mean, found.std) == (3, 2.0, 1.0)
  half_width = 0.95 * math.sqrt(2 / (1 - 0.95**2)) / math.sqrt(3)
  assert found.half_width == pytest.approx(half_width)
  # t = 2 sqrt(3) with two degrees of freedom.
  assert found.p_value == pytest.approx(1 - math.sqrt(12 / 14))


def test_one_value_has_no_interval_and_none_no_estimate():
  assert statistics.estimate([]) is None
  found = statistics.estimate([5.0])
  assert found == (1, 5.0, None, None, None)
  assert not found.is_beyond_noise


def test_equal_values():
  zero, half = statistics.estimate([0.0, 0.0]), statistics.estimate([0.5, 0.5])
  assert (zero.p_value, zero.is_beyond_noise) == (1.0, False)
  assert (half.p_value, half.is_beyond_noise) == (0.0, True)


@pytest.mark.parametrize('count', [2, 3, 5])
def test_intervals_hold_the_true_mean_as_often_as_they_say(count):
  draws = np.random.default_rng(count).normal(3, 2, (4000, count))
  found = [statistics.estimate(draw.tolist()) for draw in draws]
  share = np.mean([abs(one.mean - 3) <= one.half_width for one in found])
  assert share == pytest.approx(0.95, abs=0.012)


@hypothesis.settings(deadline=None, max_examples=50)
@hypothesis.given(st.lists(st.floats(-3, 5), min_size=2, max_size=6))
def test_the_interval_and_the_p_value_agree(values):
  found = statistics.estimate(values)
  hypothesis.assume(abs(found.p_value - 0.05) > 1e-9)
  assert found.is_beyond_noise == (found.p_value < 0.05)


def test_paired_differences_lose_what_a_seed_does_to_both():
  seeds = {0: 10.0, 1: -20.0, 2: 35.0}
  shifted = {seed: value + 1 + 0.01 * seed for seed, value in seeds.items()}
  found = statistics.paired_difference(shifted | {7: 99.0}, seeds | {8: -99.0})
  assert found.count == 3
  assert found.mean == pytest.approx(1.01)
  assert found.std == pytest.approx(0.01)
  assert statistics.paired_difference(seeds, {8: 1.0}) is None


def test_holm_by_hand():
  # Sorted 0.005 x 4, 0.01 x 3, 0.03 x 2 and 0.04 x 1, never below the one before.
  corrected = statistics.holm([0.01, 0.04, 0.03, 0.005])
  np.testing.assert_allclose(corrected, [0.03, 0.06, 0.06, 0.02])
  assert statistics.holm([]) == []
  assert statistics.holm([0.7, 0.8]) == [1.0, 1.0]


def test_holm_rejects_as_the_stepwise_rule_does():
  rng = np.random.default_rng(0)
  for _ in range(50):
    p_values = (rng.uniform(0, 1, 6) ** 3).tolist()
    rejected = set()
    for step, index in enumerate(np.argsort(p_values)):
      if p_values[index] > 0.05 / (6 - step):
        break
      rejected.add(int(index))
    corrected = statistics.holm(p_values)
    assert {i for i, p in enumerate(corrected) if p <= 0.05} == rejected
