"""Generalized Focal Loss in JAX; `gfl_jax.load(path)` is a trained detector to use."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from gfl_jax.inference.predictor import load

__all__ = ['load']
__version__ = '0.1.0'  # pyproject.toml reads it; nothing need be installed


def __getattr__(name: str) -> Any:
  # Not imported at once: `import gfl_jax.data` must not take jax along.
  if name == 'load':
    from gfl_jax.inference.predictor import load

    return load
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
