import jax
import jax.numpy as jnp
import numpy as np


def draw(module, *inputs):
  """Variables of a module, all small normal numbers; no initialiser is compiled."""
  shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)
  rng = np.random.default_rng(0)
  return jax.tree.map(lambda s: jnp.asarray(0.1 * rng.normal(size=s.shape)), shapes)
