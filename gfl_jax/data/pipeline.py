"""TFDS data sets: one reader for coco/2017, coco_folder and ambiguous_shapes."""

import logging
import os
from typing import Any

import numpy as np

from gfl_jax import files
from gfl_jax.data import (
  coco,
  coco_json,
  memory,
  scenes,
  shapes,
  shards,
  terminal,
  transforms,
)
from gfl_jax.data.annotations import Annotations
from gfl_jax.data.dataset import Dataset, Splits
from gfl_jax.data.index import read_split
from gfl_jax.data.memory import MemoryDataset, MemoryPixels
from gfl_jax.errors import UserError, storage_errors

with terminal.hold_back_stderr():  # TFDS would import it later
  import tensorflow as tf

_LOG = logging.getLogger(__name__)

MAX_MEMORY_SHARE = 0.7  # of the machine's memory, for decoded images


def load(config: Any) -> Dataset:
  """Opens a TFDS data set, preparing it first unless that was done.

  Args: config: config.data; with cache, images are decoded once into memory.
  Raises: ValueError: images that do not fit the canvas or, decoded, the memory; also
    all that the builders and Dataset raise. FileNotFoundError: nothing to prepare from.
  """
  if config.cache:
    return load_in_memory(config).dataset(config)
  return Dataset(config, _open(config))


def prepare(config: Any) -> str:
  """Prepares a data set, or compares the prepared files with their checksums.

  Returns: its folder, and how many of its files were compared; 0 if `shards` did not
    write it.
  Raises: see `load`, and `shards.verify`.
  """
  builder, _ = _builder(config)
  return f'{builder.data_path}: {shards.verify(builder.data_path)} files verified'


def load_in_memory(config: Any) -> MemoryDataset:
  """Decodes a whole data set, ready to be trained on or saved; see `load`."""
  splits = _open(config)
  parts = {'train': splits.train, 'validation': splits.validation}
  sizes = {
    name: transforms.largest_sizes(annotations.sizes, config)
    for name, (annotations, _) in parts.items()
  }
  num_gib = sum(int(s.prod(-1).sum()) * 3 for s in sizes.values()) / 2**30
  memory_gib = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30
  if num_gib > MAX_MEMORY_SHARE * memory_gib:
    raise UserError(
      f'{config.name} decoded needs {num_gib:.1f} GiB of the {memory_gib:.1f} GiB of'
      ' memory: set config.data.cache=False, or lower short_side'
    )
  num_images = sum(map(len, sizes.values()))
  _LOG.info('Decoding %d images into %.2f GiB of memory', num_images, num_gib)
  decoded: Any = {
    name: (annotations, _decode(annotations, source, sizes[name], config, name))
    for name, (annotations, source) in parts.items()
  }
  return MemoryDataset(**(vars(splits) | decoded))


def _open(config) -> Splits:
  """Both splits, with pixels that are read from the records."""
  # TensorFlow must not take the memory of the GPU that JAX trains on.
  with terminal.hold_back_stderr():
    tf.config.set_visible_devices([], 'GPU')
  builder, prepared = _builder(config)
  splits = {name: read_split(builder, name) for name in memory.SPLITS}
  turned = sum(int((source.orientations > 1).sum()) for _, source in splits.values())
  if turned:
    _LOG.info('%d images are turned as their EXIF says.', turned)
  names = tuple(builder.info.features['objects']['label'].names)
  return Splits(names, prepared.pop('category_ids'), **splits, **prepared)


def _builder(config) -> tuple[Any, dict[str, Any]]:
  """A prepared builder, and further fields of `Splits` from its preparation."""
  files.check_folder(config.data_dir, 'config.data.data_dir')
  if config.name in ('coco/2017', 'coco_folder'):
    with storage_errors(config.data_dir):
      builder = coco.prepare(config)
    metadata: Any = builder.info.metadata or {}
    # TFDS's own coco/2017 does not keep the ids.
    ids = metadata.get('category_ids', coco_json.COCO_CATEGORY_IDS)
    return builder, {
      'category_ids': tuple(ids),
      'bad_images': len(metadata.get('bad_images', ())),
      'degenerate_boxes': metadata.get('degenerate_boxes', {}).get('train', 0),
    }
  shapes_config = shapes.ShapesConfig(
    num_train=config.num_train, num_validation=config.num_validation
  )
  with terminal.silence_tfds(), storage_errors(config.data_dir):
    builder = shapes.AmbiguousShapes(
      data_dir=config.data_dir, config=shapes_config, file_format='tfrecord'
    )
    builder.download_and_prepare()
  return builder, {'category_ids': tuple(range(1, len(scenes.CLASS_NAMES) + 1))}


def _decode(
  annotations: Annotations, source: Any, sizes: np.ndarray, config, name: str
) -> MemoryPixels:
  """Decodes every image once, resized to `sizes` [N, 2] (h, w)."""
  counts = sizes.prod(-1) * 3
  starts = np.cumsum(counts) - counts
  pixels = np.empty(int(counts.sum()), np.uint8)
  plans = (
    transforms.plan_evaluation(
      np.array([row]), annotations.sizes[[row]], size.tolist(), config
    )
    for row, size in enumerate(sizes)
  )
  images = source.images(plans)
  bar = terminal.progress_bar(len(sizes), f'decoding {name}', 'image', images)
  for start, image in zip(starts, bar, strict=True):
    pixels[start : start + image.size] = image.ravel()
  return MemoryPixels(pixels, starts, sizes.astype(np.int32))
