"""The sum of a class loss whose targets are 0 almost everywhere, in less memory."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def class_loss_sum(
  loss: Callable[..., Array],
  logits: Float[Array, '*n c'],
  trained: Bool[Array, '*n'],
  rows: Int[Array, ' k'],
  classes: Int[Array, ' k'],
  targets: Float[Array, ' k'],
  weights: Float[Array, ' k'],
) -> Float[Array, '']:
  """Sum of an element-wise loss over the trained anchors and all classes.

  The target of an entry is 0, except for K entries that are listed. First every entry
  is counted as background, in one pass over the logits with a constant target; then
  the K entries are corrected. A dense target would be a second array of the logits'
  size.

  The gradient computes everything a second time: what it would keep from the first pass
  are four arrays of the logits' size. It flows into the logits alone.

  Args:
    loss: (logits, targets) -> losses, element-wise, shapes equal.
    logits: of every anchor and class.
    trained: False for anchors that are left out.
    rows: anchor of each listed entry, in the flattened [n] list; n or more for a row
      that is not used.
    classes: of each listed entry.
    targets: of each listed entry.
    weights: factor of the loss of each listed entry.
  """
  background = loss(logits, jnp.zeros_like(logits)).sum(axis=-1)
  listed = _entries(logits, rows, classes)
  as_background = loss(listed, jnp.zeros_like(listed))
  correction = weights * loss(listed, targets) - as_background
  correction = jnp.where(rows < trained.size, correction, 0.0)
  return jnp.where(trained, background, 0.0).sum() + correction.sum()


def _forward(loss, *arguments):
  return class_loss_sum(loss, *arguments), arguments


def _backward(loss, arguments, cotangent):
  logits, trained, rows, classes, targets, weights = arguments
  # Without the barrier the compiler would share the work of both passes, and keep it.
  logits, cotangent = jax.lax.optimization_barrier((logits, cotangent))

  def slope(logits, targets, weights):
    _, pull = jax.vjp(lambda x: loss(x, targets), logits)
    return pull(jnp.broadcast_to(weights, logits.shape))[0]

  background_weights = jnp.where(trained, cotangent, 0.0)[..., None]
  gradient = slope(logits, jnp.zeros_like(logits), background_weights)
  listed = slope(_entries(logits, rows, classes), targets, cotangent * weights)
  where = gradient.reshape(-1, gradient.shape[-1]).at[rows, classes]
  gradient = where.set(listed, mode='drop').reshape(logits.shape)
  return gradient, None, None, None, None, None


class_loss_sum.defvjp(_forward, _backward)


def _entries(logits, rows, classes):
  """[K] logits of the listed entries; 0 in rows that are not used."""
  flat = logits.reshape(-1, logits.shape[-1])
  return flat.at[rows, classes].get(mode='fill', fill_value=0)
