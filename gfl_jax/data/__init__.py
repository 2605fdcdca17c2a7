"""Data sets as iterators of numpy dicts. TensorFlow is imported only to read TFDS."""

from typing import Any

from gfl_jax.data import memory
from gfl_jax.data.dataset import Batch, Dataset
from gfl_jax.data.memory import prefetch
from gfl_jax.errors import UserError

__all__ = ['Batch', 'Dataset', 'load', 'prefetch']

NAMES = ('coco/2017', 'coco_folder', 'ambiguous_shapes', 'file')


def load(config: Any) -> Dataset:
  """Opens a data set, preparing it first if needed.

  Args: config: config.data. The name 'file' reads one .npz (config.path) without
    TensorFlow. All others are TFDS records below config.data_dir, which are streamed
    or, with config.cache, decoded once into memory.
  Raises: ValueError: an unknown name, and all that the data sets raise.
  """
  if config.name not in NAMES:
    raise UserError(f'config.data.name={config.name!r} must be one of {NAMES}')
  if config.name == 'file':
    return memory.load(config.path).dataset(config)
  from gfl_jax.data import pipeline

  return pipeline.load(config)
