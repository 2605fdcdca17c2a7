"""The array type that ops take: jax's own, or NumPy's, which jax converts."""

import jax
import numpy as np

ArrayLike = jax.Array | np.ndarray
