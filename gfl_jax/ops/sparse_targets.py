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

  The target of an entry, which is one anchor and class, is 0, except for K listed
  entries. First all entries count as background, in one pass over the logits with a
  constant target; then the K entries are corrected. This needs no dense target, which
  would be a second array of the logits' size.

  The gradient recomputes what it needs from the logits, because storing it in the first
  pass would take four arrays of their size. It flows into the logits alone.

  Args:
    loss: (logits, targets) -> losses, element-wise, shapes equal.
    logits: of every anchor and class.
    trained: False for anchors that are left out; none of them may be listed.
    rows: anchor of each listed entry, an index into the flattened anchors; an unused
      place of the list has their number or more.
    classes: of each listed entry; no entry may be listed twice.
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
  # Without the barrier the compiler would compute both passes at once and store the
  # arrays that they share.
  logits, cotangent = jax.lax.optimization_barrier((logits, cotangent))

  def weighted_gradient(logits, targets, weights):
    _, vjp = jax.vjp(lambda x: loss(x, targets), logits)
    return vjp(jnp.broadcast_to(weights, logits.shape))[0]

  background_weights = jnp.where(trained, cotangent, 0.0)[..., None]
  gradient = weighted_gradient(logits, jnp.zeros_like(logits), background_weights)
  listed = _entries(logits, rows, classes)
  listed = weighted_gradient(listed, targets, cotangent * weights)
  flat = gradient.reshape(-1, gradient.shape[-1])
  flat = flat.at[rows, classes].set(listed, mode='drop')
  return flat.reshape(logits.shape), None, None, None, None, None


class_loss_sum.defvjp(_forward, _backward)


def _entries(logits, rows, classes):
  """[K] logits of the listed entries; 0 at unused places of the list."""
  flat = logits.reshape(-1, logits.shape[-1])
  return flat.at[rows, classes].get(mode='fill', fill_value=0)
