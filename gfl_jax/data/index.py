"""What is known of a TFDS split, found in one pass over its records and then kept.

The index is a small file beside the records: every annotation, and where each encoded
image lies, with its checksum. From then on the order is drawn over indices, not over a
buffer of images: the shuffle is perfect and costs no memory, and any step can be the
first.
"""

import collections
import hashlib
import io
import logging
import os
import zlib
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from gfl_jax.data import console, memory, pixels, records
from gfl_jax.data.dataset import Annotations
from gfl_jax.errors import UserError

with console.suppress_import_noise():  # TFDS itself imports it only when it is used
  import tensorflow as tf

_LOG = logging.getLogger(__name__)

INDEX_VERSION = 4
RECORD_HEADER = 12  # bytes before a TFRecord's content, its length and a checksum
RECORD_FOOTER = 4
PLACES = ('files', 'offsets', 'lengths', 'checksums', 'orientations')


def read_split(builder: Any, split: str) -> tuple[Annotations, records.RecordPixels]:
  """Annotations and places of all records, from the index beside them if it fits.

  Args:
    builder: of a TFDS data set that is prepared, in TFRecord files.
    split: its name.
  """
  info = builder.info.splits[split]
  paths = [str(path) for path in info.filepaths]
  if builder.info.file_format.value != 'tfrecord':
    raise UserError(
      f'{builder.data_path} is in {builder.info.file_format.value} format: prepare it '
      'with --file_format=tfrecord'
    )
  sizes = [(os.path.basename(p), tf.io.gfile.stat(p).length) for p in paths]
  mark = hashlib.sha256(repr((INDEX_VERSION, sizes)).encode()).hexdigest()
  index_path = builder.data_path / f'gfl_index_{split}_{mark[:16]}.npz'
  try:
    with index_path.open('rb') as file, np.load(file) as stored:
      index = dict(stored)
  except (FileNotFoundError, *memory.DAMAGED):
    index = _make_index(builder, paths, info.num_examples, split)
    try:
      memory.write_arrays(index_path, index)
    except OSError as error:
      _LOG.warning('the index %s is not kept: %s', index_path, error)
  places = {name: index.pop(name) for name in PLACES}
  annotations = Annotations(**index)
  return annotations, records.RecordPixels(
    np.array(paths), **places, image_ids=annotations.image_ids
  )


def _make_index(builder, paths, num_images: int, split: str) -> dict[str, np.ndarray]:
  """Reads all records once; decodes no image."""
  columns: dict[str, list] = collections.defaultdict(list)
  progress = console.bar(num_images, f'indexing {split}', 'image')
  decoders = {'image': tfds.decode.SkipDecoding()}
  as_stored = 0
  cores = records.num_cores()

  def parse(record):
    example = builder.info.features.deserialize_example(record, decoders=decoders)
    return record, example

  for number, path in enumerate(paths):
    offset = 0
    parsed = tf.data.TFRecordDataset(path).map(parse, num_parallel_calls=cores)
    ready = parsed.prefetch(2).as_numpy_iterator()
    for record, example in console.track(ready, progress):
      encoded = example['image']
      with Image.open(io.BytesIO(encoded)) as image:
        # Data that TFDS or an older version has prepared is as it is stored.
        orientation = int(example.get('image/orientation', 1))
        width, height = pixels.turned_size(image.size, orientation)
        as_stored += (
          orientation == 1
          and image.format in ('JPEG', 'MPO')
          and pixels.orientation_of(image) > 1
        )
      objects = example['objects']
      count = len(objects['label'])
      columns['image_ids'].append(example['image/id'])
      columns['sizes'].append((height, width))
      columns['files'].append(number)
      columns['orientations'].append(orientation)
      columns['offsets'].append(offset + RECORD_HEADER + record.index(encoded))
      columns['lengths'].append(len(encoded))
      columns['checksums'].append(zlib.crc32(encoded))
      columns['counts'].append(count)
      # TFDS keeps (y0, x0, y1, x1) as shares of the image's size.
      boxes = objects['bbox'][:, [1, 0, 3, 2]] * np.array([width, height] * 2)
      columns['boxes'].append(boxes)
      for key, name in (('labels', 'label'), ('areas', 'area')):
        columns[key].append(objects[name])
      columns['is_crowd'].append(objects['is_crowd'])
      unknown = np.full((count, 4), np.nan)
      columns['edge_sigma'].append(objects.get('edge_sigma', unknown))
      unknown = np.full((count, 4), -1)
      columns['edge_kind'].append(objects.get('edge_kind', unknown))
      offset += RECORD_HEADER + len(record) + RECORD_FOOTER
  if as_stored:
    _LOG.info(
      '%s: %d photographs are used as they are stored, not turned as their EXIF says.',
      *(split, as_stored),
    )
  return _index_arrays(columns)


def _index_arrays(columns: dict[str, list]) -> dict[str, np.ndarray]:
  starts = np.concatenate([[0], np.cumsum(columns.pop('counts'))])
  types = {'image_ids': np.int64, 'sizes': np.int32} | dict.fromkeys(PLACES, np.int64)
  index = {k: np.array(columns[k], t) for k, t in types.items()} | {'starts': starts}
  types = {
    'boxes': np.float32,
    'labels': np.int32,
    'areas': np.float32,
    'is_crowd': np.bool_,
    'edge_sigma': np.float32,
    'edge_kind': np.int8,
  }
  return index | {k: np.concatenate(columns[k]).astype(t) for k, t in types.items()}
