import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gfl_jax.evaluation import rank_statistics

NUMBERS = st.lists(st.integers(-4, 4), min_size=0, max_size=12)


@settings(max_examples=30, deadline=None)
@given(NUMBERS)
def test_ranks_are_what_one_counts(values):
  got = rank_statistics.average_ranks(np.array(values))
  want = [
    1 + sum(w < v for w in values) + (sum(w == v for w in values) - 1) / 2
    for v in values
  ]
  np.testing.assert_allclose(got, want)


@settings(max_examples=30, deadline=None)
@given(NUMBERS, NUMBERS)
def test_exceeding_pairs_by_brute_force(below, above):
  want = sum((b > a) + 0.5 * (b == a) for b in below for a in above)
  assert rank_statistics.exceeding_pairs(np.array(below), np.array(above)) == want


def test_spearman():
  x = np.array([3.0, 1.0, 2.0, 5.0])
  assert rank_statistics.spearman(x, np.exp(x)) == pytest.approx(1)
  assert rank_statistics.spearman(x, -(x**3)) == pytest.approx(-1)
  # 1 - 6 sum d^2 / (n (n^2 - 1)), without ties.
  assert rank_statistics.spearman(x, np.array([2.0, 1.0, 3.0, 4.0])) == pytest.approx(
    1 - 12 / 60
  )
  # With ties: Pearson's correlation of the ranks 1.5 1.5 3 with 1 2 3.
  tied = rank_statistics.spearman(np.array([0, 0, 7]), np.array([1, 2, 3]))
  assert tied == pytest.approx(np.sqrt(3) / 2)


@pytest.mark.parametrize('values', [[], [1.0], [2.0, 2.0, 2.0]])
def test_no_order_has_no_correlation(values):
  values = np.array(values)
  assert rank_statistics.spearman(values, np.arange(len(values))) is None
  assert rank_statistics.spearman(np.arange(len(values)), values) is None


def test_kendalls_tau():
  rising = [1.0, 2.0, 3.0, 4.0]
  assert rank_statistics.kendall_tau(rising, rising) == pytest.approx(1)
  assert rank_statistics.kendall_tau(rising, rising[::-1]) == pytest.approx(-1)
  # One swap of neighbours: 5 pairs agree, 1 does not.
  assert rank_statistics.kendall_tau(rising, [1.0, 3.0, 2.0, 4.0]) == pytest.approx(
    4 / 6
  )
  # Ties: 2 agree, none differs, of 2 and 3 pairs without a tie.
  tied = rank_statistics.kendall_tau([1.0, 1.0, 2.0], [1.0, 2.0, 3.0])
  assert tied == pytest.approx(2 / np.sqrt(2 * 3))
  assert rank_statistics.kendall_tau([1.0, 1.0], [1.0, 2.0]) is None
  assert rank_statistics.kendall_tau([1.0], [1.0]) is None


def test_reliability_by_hand():
  scores = np.array([0.05, 0.1, 0.15, 1.0, 0.95])
  outcomes = np.array([0.0, 0.4, 0.2, 1.0, 0.5])
  table = rank_statistics.reliability(scores, outcomes, 10)
  np.testing.assert_allclose(table[0], [1, 0.05, 0.0])
  np.testing.assert_allclose(table[1], [2, 0.125, 0.3])
  np.testing.assert_allclose(table[9], [2, 0.975, 0.75])
  assert np.isnan(table[2:9, 1:]).all() and not table[2:9, 0].any()
  want = (0.05 + 2 * 0.175 + 2 * 0.225) / 5
  assert rank_statistics.calibration_error(table) == pytest.approx(want)
  empty = rank_statistics.reliability(np.zeros(0), np.zeros(0), 10)
  assert rank_statistics.calibration_error(empty) is None


def test_a_calibrated_forecast_has_almost_no_error():
  rng = np.random.default_rng(0)
  scores = rng.uniform(0, 1, 200_000)
  outcomes = rng.random(200_000) < scores
  table = rank_statistics.reliability(scores, outcomes, 10)
  assert rank_statistics.calibration_error(table) < 0.005
  table = rank_statistics.reliability(scores, np.clip(scores - 0.1, 0, 1), 10)
  # Off by 0.1, but in the first bin, where it is cut, by 0.05.
  assert rank_statistics.calibration_error(table) == pytest.approx(0.095, abs=0.001)
