import math

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from gfl_jax.reports.study import statistics


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
  paired = statistics.paired_differences(shifted | {7: 99.0}, seeds | {8: -99.0})
  assert list(paired) == [0, 1, 2]
  found = statistics.estimate(paired.values())
  assert found.count == 3
  assert found.mean == pytest.approx(1.01)
  assert found.std == pytest.approx(0.01)
  assert statistics.paired_differences(seeds, {8: 1.0}) == {}


def test_holm_by_hand():
  # Sorted 0.005 x 4, 0.01 x 3, 0.03 x 2 and 0.04 x 1, never below the one before.
  corrected = statistics.holm([0.01, 0.04, 0.03, 0.005])
  np.testing.assert_allclose(corrected, [0.03, 0.06, 0.06, 0.02])
  assert statistics.holm([]) == []
  assert statistics.holm([0.1, None, 0.2]) == [0.2, None, 0.2]
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
