"""TFDS data sets: one reader for coco/2017, coco_folder and ambiguous_shapes."""

import logging
import os
from typing import Any

import numpy as np

from gfl_jax import files
from gfl_jax.data import (
  coco,
  coco_classes,
  console,
  memory,
  scenes,
  shapes,
  shards,
  transforms,
)
from gfl_jax.data.dataset import Annotations, Dataset
from gfl_jax.data.index import read_split
from gfl_jax.data.memory import MemoryDataset, MemoryPixels
from gfl_jax.data.records import RecordPixels
from gfl_jax.errors import UserError, storage_errors

with console.suppress_import_noise():  # TFDS itself imports it only when it is used
  import tensorflow as tf

_LOG = logging.getLogger(__name__)

MAX_MEMORY_SHARE = 0.7  # of the machine's memory, for decoded images


def load(config: Any) -> Dataset:
  """Opens a TFDS data set, preparing it first unless that was done.

  Args: config: config.data; with cache, images are decoded once into memory.
  Raises: ValueError: images that do not fit the canvas or, decoded, the memory; all
    that the builders and Dataset raise. FileNotFoundError: nothing to prepare from.
  """
  if config.cache:
    return load_in_memory(config).dataset(config)
  parts = _open(config)
  return Dataset(config, evaluation=parts.pop('validation'), **parts)


def prepare(config: Any) -> str:
  """Prepares a data set, or compares what is prepared with its checksums.

  Returns: where it is, and how many of its files were compared; 0 for what other code
    than `shards` has written.
  Raises: see `load`, and `shards.verify`.
  """
  builder, _ = _builder(config)
  return f'{builder.data_path}: {shards.verify(builder.data_path)} files verified'


def load_in_memory(config: Any) -> MemoryDataset:
  """Decodes a whole data set, ready to be trained on or saved; see `load`."""
  parts = _open(config)
  num_bytes = sum(
    int(_stored_sizes(parts[name][0], config).prod(-1).sum()) * 3
    for name in memory.SPLITS
  )
  memory_bytes = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
  if num_bytes > MAX_MEMORY_SHARE * memory_bytes:
    raise UserError(
      f'{config.name} decoded needs {num_bytes / 2**30:.1f} GiB of the '
      f'{memory_bytes / 2**30:.1f} GiB of memory: set config.data.cache=False, or '
      'lower short_side'
    )
  num_images = sum(len(parts[name][0].sizes) for name in memory.SPLITS)
  _LOG.info('Decoding %d images into %.2f GiB of memory', num_images, num_bytes / 2**30)
  for name in memory.SPLITS:
    annotations, source = parts[name]
    parts[name] = annotations, _decode(annotations, source, config, name)
  return MemoryDataset(**parts)


def _open(config) -> dict[str, Any]:
  """Both splits, streamed, and what else `Dataset` wants to know."""
  # TensorFlow must not take the memory of the GPU that JAX trains on.
  with console.suppress_import_noise():
    tf.config.set_visible_devices([], 'GPU')
  builder, prepared = _builder(config)
  parts = {name: read_split(builder, name) for name in memory.SPLITS}
  turned = sum(int((source.orientations > 1).sum()) for _, source in parts.values())
  if turned:
    _LOG.info('%d images are turned as their EXIF says.', turned)
  return parts | {
    'class_names': tuple(builder.info.features['objects']['label'].names),
    **prepared,
  }


def _builder(config) -> tuple[Any, dict[str, Any]]:
  """A prepared builder, and what its preparation knows: category ids, bad input."""
  files.check_folder(config.data_dir, 'config.data.data_dir')
  if config.name in ('coco/2017', 'coco_folder'):
    whole = config.name == 'coco/2017'
    with storage_errors(config.data_dir):
      builder = coco.prepare_2017(config) if whole else coco.prepare_folder(config)
    metadata: Any = builder.info.metadata or {}
    # TFDS's own coco/2017 does not keep the ids.
    ids = metadata.get('category_ids', coco_classes.COCO_CATEGORY_IDS)
    return builder, {
      'category_ids': tuple(ids),
      'bad_images': len(metadata.get('bad_images', ())),
      'degenerate_boxes': metadata.get('degenerate_boxes', {}).get('train', 0),
    }
  shapes_config = shapes.ShapesConfig(
    num_train=config.num_train, num_validation=config.num_validation
  )
  with console.quiet_builders(), storage_errors(config.data_dir):
    builder = shapes.AmbiguousShapes(
      data_dir=config.data_dir, config=shapes_config, file_format='tfrecord'
    )
    builder.download_and_prepare()
  ids = range(1, len(scenes.CLASS_NAMES) + 1)
  return builder, {'category_ids': tuple(ids)}


def _stored_sizes(annotations: Annotations, config) -> np.ndarray:
  return transforms.resized_sizes(
    annotations.sizes, config.short_side[1], config.max_long_side
  )


def _decode(
  annotations: Annotations, source: RecordPixels, config, name: str
) -> MemoryPixels:
  """Decodes and resizes every image once."""
  sizes = _stored_sizes(annotations, config)
  counts = sizes.prod(-1) * 3
  starts = np.cumsum(counts) - counts
  pixels = np.empty(int(counts.sum()), np.uint8)
  plans = (
    transforms.plan_evaluation(
      np.array([row]), annotations.sizes[[row]], sizes[row].tolist(), config
    )
    for row in range(len(sizes))
  )
  progress = console.bar(len(sizes), f'decoding {name}', 'image')
  images = console.track(source.images(plans), progress)
  for start, image in zip(starts, images, strict=True):
    pixels[start : start + image.size] = image.ravel()
  return MemoryPixels(pixels, starts, sizes.astype(np.int32))
