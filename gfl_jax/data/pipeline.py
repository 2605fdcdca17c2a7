"""TFDS data sets: one reader for coco/2017, coco_folder and ambiguous_shapes.

One pass over the records, kept beside them in a small file, notes every annotation and
where its record begins. From then on the order is drawn over indices, not over a buffer
of images: the shuffle is perfect, costs no memory, and any step can be the first.
TensorFlow reads, decodes and resizes the wanted records in parallel and hands over
uint8; the device normalises (twice the images per second).

The resize is bilinear with half-pixel centres and without antialiasing: what cv2 does
in the published recipe, at half the cost.
"""

import collections
import dataclasses
import hashlib
import io
import itertools
import logging
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from gfl_jax.data import coco, coco_classes, memory, quiet, scenes, shapes, transforms
from gfl_jax.data.dataset import Annotations, Dataset
from gfl_jax.data.memory import MemoryDataset, MemoryPixels
from gfl_jax.data.transforms import Plan

with quiet.starting():  # TFDS itself imports it only when it is used
  import tensorflow as tf

_LOG = logging.getLogger(__name__)

INDEX_VERSION = 2
RECORD_OVERHEAD = 16  # bytes of a TFRecord's length and checksums
PLANS_AT_ONCE = 512  # a new tf.data pipeline, of some 0.1 s, for so many batches
MAX_MEMORY_SHARE = 0.7  # of the machine's memory, for decoded images


def load(config: Any) -> Dataset:
  """Opens a TFDS data set, preparing it first if it is one of ours.

  Args: config: config.data; with cache, images are decoded once into memory.
  Raises: ValueError: images that do not fit the canvas or, decoded, the memory; all
    that the builders and Dataset raise. FileNotFoundError: coco/2017 is not prepared.
  """
  if config.cache:
    return load_in_memory(config).dataset(config)
  parts = _open(config)
  return Dataset(config, evaluation=parts.pop('validation'), **parts)


def load_in_memory(config: Any) -> MemoryDataset:
  """Decodes a whole data set, ready to be trained on or saved; see `load`."""
  parts = _open(config)
  num_bytes = sum(
    int(_stored_sizes(parts[name][0], config).prod(-1).sum()) * 3
    for name in memory.SPLITS
  )
  memory_bytes = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
  if num_bytes > MAX_MEMORY_SHARE * memory_bytes:
    raise ValueError(
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


@dataclasses.dataclass(frozen=True)
class RecordPixels:
  """Images of one split in TFRecord files, read at random positions.

  Attributes:
    paths: [F] str, the files.
    files: [N] int64, which file an image is in.
    offsets: [N] int64, byte in that file where its record begins.
    image_ids: [N] int64, for messages.
  """

  paths: np.ndarray
  files: np.ndarray
  offsets: np.ndarray
  image_ids: np.ndarray

  def select(self, keep: np.ndarray) -> 'RecordPixels':
    """The images at `keep` alone."""
    return RecordPixels(
      self.paths, self.files[keep], self.offsets[keep], self.image_ids[keep]
    )

  def images(self, plans: Iterator[Plan]) -> Iterator[np.ndarray]:
    """Yields [b, *plan.canvas, 3] uint8 for each plan, decoding ahead in parallel.

    Raises: ValueError: a record that cannot be read or decoded, with the ids of its
      batch. Images were checked when the data was prepared, so the file is damaged.
    """
    # Not from_generator: it makes malloc hand every freed image back to the system at
    # once, for the whole process, which halves the images per second.
    while some := list(itertools.islice(plans, PLANS_AT_ONCE)):
      instructions = np.concatenate([self._instructions(plan) for plan in some])
      images = tf.data.Dataset.from_tensor_slices(instructions)
      images = images.map(self._read_image, num_parallel_calls=_num_cores())
      images = images.batch(len(some[0].rows)).prefetch(1).with_options(_options())
      iterator = images.as_numpy_iterator()
      for plan in some:
        try:
          batch = next(iterator)
        except tf.errors.OpError as error:
          raise ValueError(
            f'one of the images {self.image_ids[plan.rows].tolist()} in '
            f'{os.path.dirname(self.paths[0])} cannot be read: {error.message}'
          ) from error
        yield batch

  def _instructions(self, plan: Plan) -> np.ndarray:
    """[b, 9] int64, what `_read_image` is told."""
    real = plan.rows >= 0
    columns = [
      np.where(real, self.files[plan.rows], -1)[:, None],
      self.offsets[plan.rows][:, None],
      plan.resized,
      plan.offsets,
      plan.mirrored[:, None],
      np.broadcast_to(plan.canvas, (len(real), 2)),
    ]
    return np.concatenate(columns, axis=1, dtype=np.int64)

  def _read_image(self, instructions: tf.Tensor) -> tf.Tensor:
    offset = instructions[1]
    file, _, height, width, y, x, mirrored, canvas_height, canvas_width = tf.unstack(
      tf.cast(instructions, tf.int32)
    )

    def read():
      record = _record(tf.constant(self.paths)[file], offset)
      feature = {'image': tf.io.FixedLenFeature((), tf.string)}
      encoded = tf.io.parse_single_example(record, feature)['image']
      # Reads PNG, too. The fast transform is within a few levels of the exact one.
      image = tf.io.decode_jpeg(encoded, channels=3, dct_method='INTEGER_FAST')
      image = tf.image.resize(image, tf.stack([height, width]))
      image = tf.cast(tf.round(image), tf.uint8)
      image = image[y : y + canvas_height, x : x + canvas_width]
      image = tf.cond(mirrored > 0, lambda: tf.reverse(image, [1]), lambda: image)
      shape = tf.shape(image)
      below, right = canvas_height - shape[0], canvas_width - shape[1]
      return tf.pad(image, [[0, below], [0, right], [0, 0]])

    empty = lambda: tf.zeros((canvas_height, canvas_width, 3), tf.uint8)
    image = tf.cond(file >= 0, read, empty)
    return tf.ensure_shape(image, (None, None, 3))


def _record(path: tf.Tensor, offset: tf.Tensor) -> tf.Tensor:
  """The TFRecord that begins at a byte of a file; its checksums are verified."""
  # tf.data.TFRecordDataset is this operation, without byte_offsets.
  records = tf.raw_ops.TFRecordDatasetV2(
    filenames=[path], compression_type='', buffer_size=0, byte_offsets=[offset]
  )
  records = tf.data.experimental.from_variant(records, tf.TensorSpec((), tf.string))
  return records.take(1).get_single_element()


def _options() -> tf.data.Options:
  options = tf.data.Options()
  options.deterministic = True
  # Without its own threads tf.data competes with XLA's, and its operations with each
  # other: 796 against 920 images/s on 2 cores.
  options.threading.private_threadpool_size = _num_cores()
  options.threading.max_intra_op_parallelism = 1
  return options


def _num_cores() -> int:
  return len(os.sched_getaffinity(0))


def _open(config) -> dict[str, Any]:
  """Both splits, streamed, and what else `Dataset` wants to know."""
  # TensorFlow must not take the memory of the GPU that JAX trains on.
  with quiet.starting():
    tf.config.set_visible_devices([], 'GPU')
  with quiet.builders():
    builder, prepared = _builder(config)
  parts = {name: _read_split(builder, name) for name in memory.SPLITS}
  return parts | {
    'class_names': tuple(builder.info.features['objects']['label'].names),
    **prepared,
  }


def _builder(config) -> tuple[Any, dict[str, Any]]:
  """A prepared builder, and what its preparation knows: category ids, bad input."""
  if config.name == 'coco/2017':
    builder = tfds.builder(config.name, data_dir=config.data_dir)
    if not builder.data_path.exists():
      raise FileNotFoundError(
        f'{builder.data_path} does not exist: prepare coco/2017 with TFDS (tfds build '
        f'coco/2017 --data_dir={config.data_dir} --manual_dir=<folder of the zips>)'
      )
    return builder, {'category_ids': coco_classes.COCO_CATEGORY_IDS}
  if config.name == 'coco_folder':
    builder = coco.prepare(config)
    metadata: Any = builder.info.metadata
    return builder, {
      'category_ids': tuple(metadata['category_ids']),
      'bad_images': len(metadata['bad_images']),
      'degenerate_boxes': metadata['degenerate_boxes']['train'],
    }
  shapes_config = shapes.ShapesConfig(
    num_train=config.num_train, num_validation=config.num_validation
  )
  builder = shapes.AmbiguousShapes(
    data_dir=config.data_dir, config=shapes_config, file_format='tfrecord'
  )
  builder.download_and_prepare()
  ids = range(1, len(scenes.CLASS_NAMES) + 1)
  return builder, {'category_ids': tuple(ids)}


def _read_split(builder: Any, split: str) -> tuple[Annotations, RecordPixels]:
  """Annotations and places of all records, from the index beside them if it fits."""
  info = builder.info.splits[split]
  paths = [str(path) for path in info.filepaths]
  if builder.info.file_format.value != 'tfrecord':
    raise ValueError(
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
  places = index.pop('files'), index.pop('offsets')
  annotations = Annotations(**index)
  return annotations, RecordPixels(np.array(paths), *places, annotations.image_ids)


def _make_index(builder, paths, num_images: int, split: str) -> dict[str, np.ndarray]:
  """Reads all records once; decodes no image."""
  columns: dict[str, list] = collections.defaultdict(list)
  progress = quiet.bar(num_images, f'indexing {split}', 'image')
  decoders = {'image': tfds.decode.SkipDecoding()}

  def parse(record):
    example = builder.info.features.deserialize_example(record, decoders=decoders)
    return tf.strings.length(record), example

  for number, path in enumerate(paths):
    offset = 0
    records = tf.data.TFRecordDataset(path).map(parse, num_parallel_calls=_num_cores())
    ready = records.prefetch(2).as_numpy_iterator()
    for length, example in quiet.ticking(ready, progress):
      with Image.open(io.BytesIO(example['image'])) as image:
        width, height = image.size
      objects = example['objects']
      count = len(objects['label'])
      columns['image_ids'].append(example['image/id'])
      columns['sizes'].append((height, width))
      columns['files'].append(number)
      columns['offsets'].append(offset)
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
      offset += length + RECORD_OVERHEAD
  return _index_arrays(columns)


def _index_arrays(columns: dict[str, list]) -> dict[str, np.ndarray]:
  starts = np.concatenate([[0], np.cumsum(columns.pop('counts'))])
  types = {
    'image_ids': np.int64,
    'sizes': np.int32,
    'files': np.int64,
    'offsets': np.int64,
  }
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
  progress = quiet.bar(len(sizes), f'decoding {name}', 'image')
  images = quiet.ticking(source.images(plans), progress)
  for start, image in zip(starts, images, strict=True):
    pixels[start : start + image.size] = image.ravel()
  return MemoryPixels(pixels, starts, sizes.astype(np.int32))
