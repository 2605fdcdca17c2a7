import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gfl_jax.models import norms


def group_norm(x, num_groups, scale=1.0, bias=0.0):
  """The definition, one image and one group at a time, in float64."""
  out = np.zeros(x.shape)
  width = x.shape[-1] // num_groups
  for image, start in np.ndindex(len(x), num_groups):
    part = np.s_[image, :, :, start * width : (start + 1) * width]
    values = np.asarray(x[part], np.float64)
    out[part] = (values - values.mean()) / np.sqrt(values.var() + 1e-5)
  return out * scale + bias


def apply_group_norm(x, num_groups, **params):
  channels = x.shape[-1]
  params = {'scale': jnp.ones(channels), 'bias': jnp.zeros(channels)} | params
  return norms.GroupNorm(num_groups).apply({'params': params}, jnp.asarray(x))


@pytest.mark.parametrize('spread', [3, 1e-3])  # far above and below epsilon's root
@pytest.mark.parametrize('num_groups', [1, 3, 12])
def test_group_norm_equals_its_definition(num_groups, spread):
  rng = np.random.default_rng(0)
  x = spread * (rng.normal(size=(2, 5, 3, 12)) + np.arange(12)).astype(np.float32)
  scale, bias = rng.normal(size=(2, 12)).astype(np.float32)
  actual = apply_group_norm(
    x, num_groups, scale=jnp.asarray(scale), bias=jnp.asarray(bias)
  )
  expected = group_norm(x, num_groups, scale, bias)
  np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


def test_group_norm_keeps_its_digits_far_from_zero():
  x = np.random.default_rng(0).normal(size=(1, 8, 8, 4)).astype(np.float32) + 1000
  np.testing.assert_allclose(apply_group_norm(x, 2), group_norm(x, 2), atol=2e-4)


def test_group_norm_of_a_constant_is_the_bias_with_finite_gradient():
  x = jnp.full((1, 4, 4, 4), 7.0)
  bias = jnp.arange(4.0)
  out = apply_group_norm(x, 2, bias=bias)
  np.testing.assert_array_equal(out, np.broadcast_to(bias, x.shape))
  grad = jax.grad(lambda x: apply_group_norm(x, 2)[0, 0, 0, 0])(x)
  assert np.isfinite(grad).all()


def test_group_norm_in_bfloat16_has_float32_statistics():
  x = np.random.default_rng(0).normal(size=(1, 64, 64, 2)) * 0.01 + 1
  x = jnp.asarray(x, jnp.bfloat16)
  variables = {'params': {'scale': jnp.ones(2), 'bias': jnp.zeros(2)}}
  out = norms.GroupNorm(1, jnp.bfloat16).apply(variables, x)
  assert out.dtype == jnp.bfloat16
  # 8,192 values near 1 are beyond what a bfloat16 sum resolves.
  expected = group_norm(np.asarray(x, np.float32), 1)
  np.testing.assert_allclose(
    np.asarray(out, np.float32), expected, rtol=0.01, atol=0.01
  )


def test_groups_that_do_not_divide_the_channels_are_an_error():
  with pytest.raises(ValueError, match='norm_groups=5.* 12 channels'):
    apply_group_norm(np.zeros((1, 2, 2, 12), np.float32), 5)


def test_frozen_batch_norm_equals_its_definition_and_keeps_its_statistics():
  rng = np.random.default_rng(0)
  x, mean, scale, bias = (rng.normal(size=s) for s in ((2, 3, 4, 6), 6, 6, 6))
  var = rng.uniform(0.1, 2, size=6)
  as_jax = lambda tree: jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), tree)
  variables = as_jax(
    {
      'params': {'scale': scale, 'bias': bias},
      'batch_stats': {'mean': mean, 'var': var},
    }
  )
  out, changed = norms.FrozenBatchNorm().apply(
    variables, as_jax(x), mutable=['batch_stats']
  )
  expected = (x - mean) / np.sqrt(var + 1e-5) * scale + bias
  np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5)
  jax.tree.map(
    np.testing.assert_array_equal, changed['batch_stats'], variables['batch_stats']
  )
