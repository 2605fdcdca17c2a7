"""The array type that ops take, and the one they compute in."""

import jax
import jax.numpy as jnp
import numpy as np

# jax's own, or NumPy's, which jax converts.
ArrayLike = jax.Array | np.ndarray


def at_least_float32(*arrays: ArrayLike) -> list[jax.Array]:
  """The arrays in the widest of their types and float32: bfloat16 goes up."""
  converted = [jnp.asarray(x) for x in arrays]
  dtype = jnp.result_type(jnp.float32, *converted)
  return [x.astype(dtype) for x in converted]
