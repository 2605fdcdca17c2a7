"""The index of a TFDS split: one pass over its records finds it, a file keeps it.

This small file beside the records holds every annotation, and where each encoded image
lies, with its checksum. With it the order is drawn over indices, not over a buffer of
images: the shuffle is perfect, costs no memory, and any step can be the first.
"""

import collections
import hashlib
import io
import logging
import os
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from gfl_jax.data import memory, pixels, records, terminal
from gfl_jax.data.annotations import Annotations
from gfl_jax.errors import UserError

with terminal.hold_back_stderr():  # TFDS would import it later
  import tensorflow as tf

_LOG = logging.getLogger(__name__)

INDEX_VERSION = 4
RECORD_HEADER = 12  # bytes before a TFRecord's content, its length and a checksum
RECORD_FOOTER = 4
PLACES = ('files', 'offsets', 'lengths', 'checksums', 'orientations')
_PER_IMAGE = {
  'image_ids': np.int64,
  'sizes': np.int32,
  **dict.fromkeys(PLACES, np.int64),
}
_PER_BOX = {
  'boxes': np.float32,
  'labels': np.int32,
  'areas': np.float32,
  'is_crowd': np.bool_,
  'edge_sigma': np.float32,
  'edge_kind': np.int8,
}


def read_split(builder: Any, split: str) -> tuple[Annotations, records.RecordPixels]:
  """Annotations and pixels of a split; writes its index if there is none that fits.

  Args:
    builder: the builder of a prepared TFDS data set in TFRecord files.
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
      _LOG.warning('the index %s cannot be written: %s', index_path, error)
  places = {name: index.pop(name) for name in PLACES}
  annotations = Annotations(**index)
  return annotations, records.RecordPixels(
    np.array(paths), **places, image_ids=annotations.image_ids
  )


def _make_index(builder, paths, num_images: int, split: str) -> dict[str, np.ndarray]:
  """Reads all records once; decodes no image."""
  columns: dict[str, list] = collections.defaultdict(list)
  found = _read_records(builder, paths)
  bar = terminal.progress_bar(num_images, f'indexing {split}', 'image', found)
  for number, offset, record, example in bar:
    encoded, objects = example['image'], example['objects']
    # TFDS's own records have no orientation: their images are used as stored.
    orientation = int(example.get('image/orientation', 1))
    with Image.open(io.BytesIO(encoded)) as image:
      width, height = pixels.turned_size(image.size, orientation)
      turnable = image.format in ('JPEG', 'MPO') and pixels.orientation_of(image) > 1
    count = len(objects['label'])
    row = {
      'image_ids': example['image/id'],
      'sizes': (height, width),
      'files': number,
      'offsets': offset + RECORD_HEADER + record.index(encoded),
      'lengths': len(encoded),
      'checksums': zlib.crc32(encoded),
      'orientations': orientation,
      'counts': count,
      'as_stored': turnable and orientation == 1,
      # TFDS keeps (y0, x0, y1, x1) as shares of the image's size.
      'boxes': objects['bbox'][:, [1, 0, 3, 2]] * np.array([width, height] * 2),
      'labels': objects['label'],
      'areas': objects['area'],
      'is_crowd': objects['is_crowd'],
      'edge_sigma': objects.get('edge_sigma', np.full((count, 4), np.nan)),
      'edge_kind': objects.get('edge_kind', np.full((count, 4), -1)),
    }
    for name, value in row.items():
      columns[name].append(value)
  if as_stored := sum(columns['as_stored']):
    _LOG.info(
      '%s: %d photographs are used as they are stored, not turned as their EXIF says.',
      *(split, as_stored),
    )
  return {
    **{name: np.array(columns[name], kind) for name, kind in _PER_IMAGE.items()},
    'starts': np.concatenate([[0], np.cumsum(columns['counts'])]),
    **{k: np.concatenate(columns[k]).astype(kind) for k, kind in _PER_BOX.items()},
  }


def _read_records(builder, paths) -> Iterator[tuple[int, int, bytes, Any]]:
  """Of each record: number of its file, offset in bytes, content, parsed content."""
  decoders = {'image': tfds.decode.SkipDecoding()}
  features = builder.info.features
  parse = lambda record: (
    record,
    features.deserialize_example(record, decoders=decoders),
  )
  for number, path in enumerate(paths):
    offset = 0
    parsed = tf.data.TFRecordDataset(path).map(
      parse, num_parallel_calls=records.num_cores()
    )
    for record, example in parsed.prefetch(2).as_numpy_iterator():
      yield number, offset, record, example
      offset += RECORD_HEADER + len(record) + RECORD_FOOTER
