"""Leaves of parameter trees by name, and their comparison."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from gfl_jax.errors import UserError


def check_same(stored: Mapping[str, Any], target: Any, source: str) -> None:
  """Checks that stored leaves are those of a tree.

  Args:
    stored: by name, as 'params.neck.output0.kernel'.
    target: a tree of arrays, or of their shapes and dtypes.
    source: where they were stored, for the error.

  Raises:
    ValueError: leaves whose name, shape or dtype differ; the first ten are named.
  """
  target = named_leaves(target)
  describe = lambda x: f'{np.dtype(x.dtype)}{list(x.shape)}'
  differing = [
    f'{name}: stored {describe(stored[name]) if name in stored else "nothing"},'
    f' expected {describe(target[name]) if name in target else "nothing"}'
    for name in sorted(stored.keys() | target.keys())
    if name not in stored
    or name not in target
    or describe(stored[name]) != describe(target[name])
  ]
  if differing:
    raise UserError(
      f'{source} belongs to another model or optimiser; {len(differing)} leaves'
      ' differ:\n  ' + '\n  '.join(differing[:10])
    )


def named_leaves(tree: Any) -> dict[str, Any]:
  """The leaves of a tree by name, as 'params.neck.output0.kernel'."""
  leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
  name = lambda path: jax.tree_util.keystr(path, simple=True, separator='.')
  return {name(path): leaf for path, leaf in leaves}
