"""The sum of a class loss with few targets, against the plain sum over dense ones."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gfl_jax.ops import losses
from gfl_jax.ops.sparse_targets import class_loss_sum

LOSSES = [losses.focal_loss, losses.quality_focal_loss, losses.varifocal_loss]
NUM_ANCHORS, UNUSED = 20, 25  # an index beyond the anchors


def scene(loss, *, shape=(2, 10), classes=4, rows=(3, 3, 16, UNUSED, 12, NUM_ANCHORS)):
  """Arguments of `class_loss_sum` after the loss; anchors 1, 7 and 19 are untrained."""
  rng, count = np.random.default_rng(0), len(rows)
  logits = 2 * rng.normal(size=(*shape, classes))
  trained = ~np.isin(np.arange(np.prod(shape)), (1, 7, 19)).reshape(shape)
  targets = np.ones(count) if loss is losses.focal_loss else rng.uniform(size=count)
  floats = (jnp.asarray(x, jnp.float32) for x in (targets, rng.uniform(0.5, 2, count)))
  rows, columns = (jnp.asarray(x, jnp.int32) for x in (rows, np.arange(count) % 4))
  return jnp.asarray(logits, jnp.float32), jnp.asarray(trained), rows, columns, *floats


def dense_sum(loss, logits, trained, rows, classes, targets, weights):
  """The definition: targets and weights of every entry."""
  entry = lambda fill: jnp.full((trained.size, logits.shape[-1]), fill).at[
    rows, classes
  ]
  dense_targets = entry(0.0).set(targets, mode='drop').reshape(logits.shape)
  factors = entry(1.0).set(weights, mode='drop').reshape(logits.shape)
  return jnp.where(trained[..., None], factors * loss(logits, dense_targets), 0).sum()


@functools.partial(jax.jit, static_argnums=0)
def both(loss, *arguments):
  """Value and gradient of each form."""
  grad = lambda total: jax.value_and_grad(functools.partial(total, loss))(*arguments)
  return grad(class_loss_sum), grad(dense_sum)


@pytest.mark.parametrize('loss', LOSSES)
@pytest.mark.parametrize('case', ['usual', 'saturated', 'all unused', 'empty'])
def test_value_and_gradient_are_those_of_the_dense_form(loss, case):
  rows = {'all unused': 6 * (UNUSED,), 'empty': ()}.get(case)
  logits, trained, *entries = scene(loss, **({} if rows is None else {'rows': rows}))
  if case == 'saturated':
    logits = 100 * jnp.sign(logits)
  (value, grad), (expected, expected_grad) = both(loss, logits, trained, *entries)
  np.testing.assert_allclose(value, expected, rtol=1e-5)
  np.testing.assert_allclose(grad, expected_grad, rtol=1e-5, atol=1e-6)
  assert np.isfinite(grad).all() and np.any(grad) and not np.any(grad[~trained])


def test_the_gradient_is_scaled_and_flows_into_the_logits_alone():
  logits, trained, rows, classes, targets, weights = scene(losses.quality_focal_loss)

  def total(logits, targets, weights):
    loss = losses.quality_focal_loss
    return 3 * class_loss_sum(loss, logits, trained, rows, classes, targets, weights)

  grad, *others = jax.jit(jax.grad(total, (0, 1, 2)))(logits, targets, weights)
  (_, once), _ = both(
    losses.quality_focal_loss, logits, trained, rows, classes, targets, weights
  )
  np.testing.assert_allclose(grad, 3 * once, rtol=1e-6)
  assert not any(np.any(other) for other in others)


def test_temporaries_are_less_than_half_of_the_dense_forms():
  arguments = scene(losses.quality_focal_loss, shape=(2, 8000), classes=40)

  def temporaries(total):
    both_parts = jax.value_and_grad(functools.partial(total, losses.quality_focal_loss))
    compiled = jax.jit(both_parts).lower(*arguments).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  assert temporaries(class_loss_sum) < 0.5 * temporaries(dense_sum)
