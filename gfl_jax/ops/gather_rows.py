"""Rows of arrays with several inner axes."""

import math
from typing import Any

from jaxtyping import Array, Int, Num

from gfl_jax.ops.types import ArrayLike


def gather_rows(
  values: Num[Array, ' n *inner'], rows: Int[ArrayLike, ' k'], **options: Any
) -> Num[Array, ' k *inner']:
  """`values[rows]`, gathered as rows of one axis.

  A TPU pads the last axis to 128, which makes 4 x 17 numbers of a row 512, and 68 only
  128.

  Args:
    values: of any inner shape.
    rows: of the first axis.
    options: `mode` and `fill_value` of `jax.numpy.ndarray.at[...].get`.
  """
  flat = values.reshape(len(values), math.prod(values.shape[1:]))
  return flat.at[rows].get(**options).reshape(-1, *values.shape[1:])
