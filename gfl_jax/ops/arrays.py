"""What all ops share: the array type that they take, its widening, rows by index."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Num

# JAX's own arrays, or NumPy's, which JAX converts.
ArrayLike = jax.Array | np.ndarray


def at_least_float32(*arrays: ArrayLike) -> list[jax.Array]:
  """The arrays in one type: the widest of float32 and their own."""
  converted = [jnp.asarray(x) for x in arrays]
  dtype = jnp.result_type(jnp.float32, *converted)
  return [x.astype(dtype) for x in converted]


def gather_rows(
  values: Num[Array, ' n *inner'], rows: Int[ArrayLike, ' k'], **options: Any
) -> Num[Array, ' k *inner']:
  """`values[rows]`, gathered with all inner axes flattened into one.

  A TPU pads the last axis to a multiple of 128: a row of 4 x 17 numbers would take 512
  of them, and flattened it takes 128.

  Args:
    values: rows of any inner shape.
    rows: indices along the first axis.
    options: `mode` and `fill_value` of `jax.numpy.ndarray.at[...].get`.
  """
  flat = values.reshape(len(values), math.prod(values.shape[1:]))
  return flat.at[rows].get(**options).reshape(-1, *values.shape[1:])
