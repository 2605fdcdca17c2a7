import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gfl_jax.ops.distributions import (
  BinGrid,
  clamp_targets,
  expectation,
  quantile,
  variance,
)
from tests import golden

GOLDEN = golden.load('losses')
GRID = BinGrid(-1, 3, 9)


def close(actual, expected):
  np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=1e-6)


def logits_of(probabilities):
  return jnp.log(jnp.maximum(jnp.array(probabilities, jnp.float32), 1e-38))


def assert_products_are_exact(lowered):
  """No product of the program is left at the device's default precision."""
  products = re.findall('.*dot_general.*', lowered)
  assert all('precision = [HIGHEST, HIGHEST]' in line for line in products), products


@pytest.mark.parametrize('reg_max', [7, 16, 32])
def test_expectation_and_its_gradient_equal_the_authors(reg_max):
  g = lambda key: GOLDEN[f'dfl/reg_max{reg_max}/{key}']
  grid = BinGrid(0, reg_max, reg_max + 1)
  value, pull = jax.vjp(lambda x: expectation(x, grid), g('logits'))
  close(value, g('integral').reshape(-1))
  grad = pull(g('integral_upstream').reshape(-1))[0]
  # Each bin's value less the mean: rounding is that of numbers as large as reg_max.
  rounding = np.finfo(np.float32).eps * reg_max
  np.testing.assert_allclose(grad, g('integral_grad'), rtol=1e-6, atol=rounding)


@pytest.mark.parametrize('reg_max', [7, 16])
def test_clamped_targets_equal_the_authors(reg_max):
  clamped = clamp_targets(GOLDEN['coder/encode'], BinGrid(0, reg_max, reg_max + 1))
  close(clamped, GOLDEN[f'coder/encode_max{reg_max}'])


def test_the_paper_s_17_bins():
  grid = BinGrid(0, 16, 17)
  np.testing.assert_array_equal(grid.values, np.arange(17, dtype=np.float32))
  assert grid.width == 1


def test_moments_of_a_distribution_by_hand():
  p = np.zeros(9)
  p[[2, 4, 5]] = 0.5, 0.25, 0.25  # at 0, 1 and 1.5
  mean = 0.25 * 1 + 0.25 * 1.5
  close(expectation(logits_of(p), GRID), mean)
  spread = 0.5 * mean**2 + 0.25 * (1 - mean) ** 2 + 0.25 * (1.5 - mean) ** 2
  close(variance(logits_of(p), GRID), spread)


def test_quantiles_of_a_distribution_by_hand():
  p = np.zeros(9)
  p[[2, 4, 5]] = 0.5, 0.25, 0.25  # over [-.25, .25], [.75, 1.25] and [1.25, 1.75]
  found = [quantile(logits_of(p), GRID, q=q) for q in (0.0, 0.1, 0.5, 0.625, 0.8, 1.0)]
  close(found[1:5], [-0.25 + 0.1, 0.25, 1.0, 1.25 + 0.1])
  # Nothing is below the smallest value, and the softmax has no true zeros.
  close([found[0], found[5]], [-1, 1.75])


@pytest.mark.parametrize('scale', [100.0, 1e4])
def test_a_single_bin_is_its_own_mean_and_median_without_variance(scale):
  logits = scale * jnp.eye(9)
  close(expectation(logits, GRID), GRID.values)
  close(variance(logits, GRID), np.zeros(9))
  close(quantile(logits, GRID, q=0.5), GRID.values)


def test_quantiles_rise_with_q_within_the_grid():
  logits = np.random.default_rng(0).normal(size=(20, 9)).astype(np.float32) * 4
  levels = np.stack([quantile(logits, GRID, q=q) for q in np.linspace(0, 1, 11)])
  assert (np.diff(levels, axis=0) >= -1e-6).all()
  assert levels.min() >= GRID.start and levels.max() <= GRID.stop


@pytest.mark.parametrize(
  'function', [expectation, variance, lambda x, grid: quantile(x, grid, q=0.5)]
)
def test_products_are_exact_on_devices_whose_default_is_not(function):
  both = jax.jit(jax.vmap(jax.value_and_grad(lambda x: function(x, GRID))))
  assert_products_are_exact(both.lower(jnp.zeros((3, 9))).as_text())


@pytest.mark.parametrize(
  'function', [expectation, variance, lambda x, grid: quantile(x, grid, q=0.3)]
)
def test_bfloat16_logits_are_computed_in_float32(function):
  logits = jax.random.normal(jax.random.key(0), (20, 9), jnp.bfloat16)
  value = function(logits, GRID)
  assert value.dtype == jnp.float32
  close(value, function(logits.astype(jnp.float32), GRID))


def test_leading_axes_are_batches():
  logits = np.random.default_rng(0).normal(size=(2, 3, 4, 9)).astype(np.float32)
  for function in (expectation, variance, lambda x, g: quantile(x, g, q=0.3)):
    whole = function(logits, GRID)
    assert whole.shape == (2, 3, 4)
    close(whole[1, 2], function(logits[1, 2], GRID))


def test_saturated_bins_have_finite_values_and_gradients():
  logits = jnp.array([100.0, -100, 100, -100, 0, 0, 0, 0, 100])
  for function in (expectation, variance, lambda x, g: quantile(x, g, q=0.5)):
    value, grad = jax.value_and_grad(function)(logits, GRID)
    assert np.isfinite(value) and np.isfinite(grad).all()


def test_targets_are_clamped_to_a_tenth_of_a_bin_before_the_end():
  close(clamp_targets(jnp.array([-2.0, 0.3, 2.99]), GRID), [-1, 0.3, 3 - 0.05])


def test_a_grid_is_hashable():
  assert {BinGrid(0, 16, 17): 1}[BinGrid(0, 16, 17)] == 1


@pytest.mark.parametrize(
  'bad', [(0, 16, 1), (0, 0, 5), (3, 1, 5), (0, float('nan'), 5)]
)
def test_grids_without_extent_are_refused(bad):
  with pytest.raises(ValueError, match='num_bins=1|stop='):
    BinGrid(*bad)


def test_bad_arguments_are_refused():
  with pytest.raises(ValueError, match='q=1.5'):
    quantile(jnp.zeros(9), GRID, q=1.5)
  for function in (expectation, variance, lambda x, g: quantile(x, g, q=0.5)):
    with pytest.raises(ValueError, match=r'\(3, 8\).*num_bins=9'):
      function(jnp.zeros((3, 8)), GRID)
