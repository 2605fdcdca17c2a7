"""Parameter trees: their shapes, their leaves by name, and a comparison."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gfl_jax.errors import UserError


def variable_shapes(module: Any) -> Any:
  """Shapes and dtypes of the variables of a Flax module that takes an image.

  Args:
    module: called with images [B, h, w, 3].
  """
  image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
  return jax.eval_shape(module.init, jax.random.key(0), image)


def check_same(stored: Mapping[str, Any], target: Any, source: str) -> None:
  """Checks that stored leaves have the names, shapes and dtypes of a tree.

  Args:
    stored: by name, as 'params.neck.output0.kernel'.
    target: a tree of arrays, or of their shapes and dtypes.
    source: where they were stored, for the error.

  Raises:
    ValueError: leaves whose name, shape or dtype differ; the first ten are named.
  """
  describe = lambda x: f'{np.dtype(x.dtype)}{list(x.shape)}'
  here, there = (
    {name: describe(x) for name, x in leaves.items()}
    for leaves in (stored, named_leaves(target))
  )
  differing = [
    f'{name}: stored {here.get(name, "nothing")}, expected {there.get(name, "nothing")}'
    for name in sorted(here.keys() | there.keys())
    if here.get(name) != there.get(name)
  ]
  if differing:
    raise UserError(
      f'{source} belongs to another model or optimizer; {len(differing)} leaves'
      ' differ:\n  ' + '\n  '.join(differing[:10])
    )


def named_leaves(tree: Any) -> dict[str, Any]:
  """The leaves of a tree by name, as 'params.neck.output0.kernel'."""
  leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
  name = lambda path: jax.tree_util.keystr(path, simple=True, separator='.')
  return {name(path): leaf for path, leaf in leaves}
