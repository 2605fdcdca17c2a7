"""Densities of sides, against closed forms and brute-force integration."""

import math
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict

from gfl_jax.evaluation import side_distributions
from gfl_jax.ops.distributions import BinGrid

GRID = BinGrid(-1.0, 3.0, 9)


def triangle_density(x, probabilities, grid):
  """The mixture, triangle by triangle."""
  total = np.zeros_like(x)
  for p, value in zip(probabilities, grid.values, strict=True):
    triangle = np.clip(1 - np.abs(x - value) / grid.width, 0, None) / grid.width
    at_end = value in (grid.values[0], grid.values[-1])
    inside = (x >= grid.start) & (x <= grid.stop)
    total += p * triangle * (2 if at_end else 1) * inside
  return total


def brute_force(density, x, target):
  """Mass, CDF at the target and CRPS by the midpoint rule on the points x."""
  step = x[1] - x[0]
  values = density(x)
  cdf = np.cumsum(values) * step - 0.5 * values * step
  crps = (np.square(cdf - (x >= target))).sum() * step
  return values.sum() * step, np.interp(target, x, cdf), crps


def draw_probabilities(seed):
  rng = np.random.default_rng(seed)
  return rng.dirichlet(np.full(GRID.num_bins, 0.5))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(-2.5, 4.5))
def test_piecewise_linear_against_brute_force(seed, target):
  p = draw_probabilities(seed)
  x = np.linspace(-4, 6, 200_001)[:-1] + 2.5e-5
  density = lambda x: triangle_density(x, p, GRID)
  mass, cdf, crps = brute_force(density, x, target)
  assert mass == pytest.approx(1, abs=1e-4)
  fit = side_distributions.piecewise_linear(p, np.array(target), GRID)
  assert fit.cdf == pytest.approx(cdf, abs=2e-4)
  assert fit.crps == pytest.approx(crps, abs=1e-3)
  assert fit.density == pytest.approx(density(np.array([target]))[0], abs=1e-9)


def test_piecewise_linear_densities_take_any_shape_and_end_with_the_grid():
  p = np.stack([draw_probabilities(seed) for seed in range(6)]).reshape(2, 3, 9)
  targets = np.array([[-1.0, 3.0, -5.0], [9.0, 0.25, 2.999]])
  fit = side_distributions.piecewise_linear(p, targets, GRID)
  assert fit.cdf.shape == fit.density.shape == fit.crps.shape == (2, 3)
  np.testing.assert_allclose(fit.cdf.ravel()[:4], [0, 1, 0, 1], atol=1e-12)
  np.testing.assert_allclose(fit.density[0, :2], 4 * p[0, [0, 1], [0, -1]])
  assert fit.density[0, 2] == fit.density[1, 0] == 0
  for i in np.ndindex(2, 3):
    alone = side_distributions.piecewise_linear(p[i], np.array(targets[i]), GRID)
    np.testing.assert_allclose([v[i] for v in fit], alone, rtol=1e-12)
  # Beyond the grid the score grows by the distance.
  far = [
    side_distributions.piecewise_linear(p[0, 0], np.array(t), GRID).crps
    for t in (4.0, 9.0, -2.0, -5)
  ]
  np.testing.assert_allclose([far[1] - far[0], far[3] - far[2]], [5, 3], rtol=1e-9)


def test_quantiles_of_a_density_are_those_of_the_mixture():
  """A draw from the mixture lies below its own q-quantile in a share q of cases."""
  rng = np.random.default_rng(0)
  p = draw_probabilities(3)
  bins = rng.choice(GRID.num_bins, 40_000, p=p)
  offsets = rng.uniform(0, 1, 40_000) + rng.uniform(0, 1, 40_000) - 1  # a triangle
  offsets = np.where(bins == 0, np.abs(offsets), offsets)
  offsets = np.where(bins == GRID.num_bins - 1, -np.abs(offsets), offsets)
  draws = GRID.values[bins] + GRID.width * offsets
  cdf = side_distributions.piecewise_linear(
    np.broadcast_to(p, (40_000, 9)), draws, GRID
  ).cdf
  for q in (0.025, 0.1, 0.25, 0.5, 0.75, 0.9, 0.975):
    assert (cdf < q).mean() == pytest.approx(q, abs=0.01)


@settings(max_examples=10, deadline=None)
@given(st.floats(-3, 3), st.floats(0.2, 1.5))
def test_normal_against_brute_force(error, std):
  x = np.linspace(-15, 15, 300_001)[:-1] + 5e-5
  exact = NormalDist(0, std)
  density = lambda x: np.exp(-0.5 * (x / std) ** 2) / (std * math.sqrt(2 * math.pi))
  _, _, crps = brute_force(density, x, error)
  fit = side_distributions.normal(np.array(error), std)
  assert fit.cdf == pytest.approx(exact.cdf(error), abs=1e-12)
  assert fit.density == pytest.approx(exact.pdf(error), rel=1e-9)
  assert fit.crps == pytest.approx(crps, abs=1e-3)


def test_crps_of_a_normal_at_its_mean():
  fit = side_distributions.normal(np.zeros(1), np.array([2.0]))
  want = 2 * (2 / math.sqrt(2 * math.pi) - 1 / math.sqrt(math.pi))
  np.testing.assert_allclose(fit.crps, want)


def test_each_representation_reads_its_own_outputs():
  rng = np.random.default_rng(0)
  config = ConfigDict({'start': 0.0, 'stop': 4.0, 'num_bins': 5})
  targets, errors = rng.uniform(0, 4, (3, 4)), rng.normal(0, 1, (3, 4))
  zero, std = np.zeros((3, 4)), rng.uniform(0.5, 2, (3, 4))
  fit = side_distributions.FITS['dirac'](
    np.zeros((3, 4, 1)), errors, zero, targets, config
  )
  np.testing.assert_array_equal(fit.crps, np.abs(errors))
  assert np.isnan(fit.cdf).all() and np.isnan(fit.density).all()
  fit = side_distributions.FITS['gaussian'](
    np.zeros((3, 4, 2)), errors, std, targets, config
  )
  np.testing.assert_allclose(fit.cdf[0, 0], NormalDist(0, std[0, 0]).cdf(errors[0, 0]))
  logits = rng.normal(0, 1, (3, 4, 5)).astype(np.float32)
  softmax = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
  fit = side_distributions.FITS['general'](logits, errors, zero, targets, config)
  want = side_distributions.piecewise_linear(softmax, targets, BinGrid(0.0, 4.0, 5))
  np.testing.assert_allclose(fit, want, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('std', [0.0, 1e-30, 1e22])
def test_extreme_deviations_stay_finite(std):
  fit = side_distributions.normal(np.array([-1e3, 0.0, 1e3]), std)
  assert np.isfinite(fit).all()


def test_saturated_logits_stay_finite():
  config = ConfigDict({'start': 0.0, 'stop': 4.0, 'num_bins': 5})
  rng = np.random.default_rng(0)
  logits = rng.choice([-100.0, 100.0], (50, 4, 5)).astype(np.float32)
  targets = rng.uniform(-3, 9, (50, 4))
  fit = side_distributions.FITS['general'](logits, targets, targets, targets, config)
  assert np.isfinite(fit).all() and (fit.density >= 0).all()
