import numpy as np
import pytest

from gfl_jax.evaluation import calibration


def test_reliability_by_hand():
  scores = np.array([0.05, 0.1, 0.15, 1.0, 0.95])
  outcomes = np.array([0.0, 0.4, 0.2, 1.0, 0.5])
  table = calibration.reliability(scores, outcomes, 10)
  np.testing.assert_allclose(table[0], [1, 0.05, 0.0])
  np.testing.assert_allclose(table[1], [2, 0.125, 0.3])
  np.testing.assert_allclose(table[9], [2, 0.975, 0.75])
  assert np.isnan(table[2:9, 1:]).all() and not table[2:9, 0].any()
  want = (0.05 + 2 * 0.175 + 2 * 0.225) / 5
  assert calibration.calibration_error(table) == pytest.approx(want)
  empty = calibration.reliability(np.zeros(0), np.zeros(0), 10)
  assert calibration.calibration_error(empty) is None


def test_a_calibrated_forecast_has_almost_no_error():
  rng = np.random.default_rng(0)
  scores = rng.uniform(0, 1, 200_000)
  outcomes = rng.random(200_000) < scores
  table = calibration.reliability(scores, outcomes, 10)
  assert calibration.calibration_error(table) < 0.005
  table = calibration.reliability(scores, np.clip(scores - 0.1, 0, 1), 10)
  # Off by 0.1, but in the first bin, where it is cut, by 0.05.
  assert calibration.calibration_error(table) == pytest.approx(0.095, abs=0.001)
