"""Gradient accumulation: a batch in several micro-batches, one after the other."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def sum_over_micro_batches(
  function: Callable[[Any], Any], batch: Any, count: int
) -> Any:
  """The sum of `function(micro-batch)` over the `count` equal parts of a batch.

  They are computed one at a time, so the memory is that of one.

  Args:
    function: micro-batch -> a tree of arrays.
    batch: a tree of arrays [B, ...].
    count: divides B.
  """
  parts = jax.tree.map(lambda x: x.reshape(count, -1, *x.shape[1:]), batch)
  first = jax.tree.map(lambda x: x[0], parts)
  zeros = jax.tree.map(jnp.zeros_like, jax.eval_shape(function, first))
  add = lambda total, part: (jax.tree.map(jnp.add, total, function(part)), None)
  return jax.lax.scan(add, zeros, parts)[0]
