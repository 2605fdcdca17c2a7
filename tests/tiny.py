"""A detector small enough to compile in seconds, and batches for it."""

import json

import numpy as np

from configs import demo_shapes
from gfl_jax.data import annotations, memory
from gfl_jax.training import experiment, run_folder


def config():
  """The demo's config with a tiny network, 64 x 64 images and 3 classes."""
  c = demo_shapes.get_config()
  c.batch_size = 8
  c.data.update(name='file', canvas=(64, 64), short_side=(64, 64), max_long_side=64)
  c.data.max_boxes = 4
  c.model.num_classes = 3
  c.box.num_bins = 9
  c.model.backbone.update(widths=(8, 8, 16, 16), norm_groups=4)
  c.model.neck.channels = 8
  c.model.head.update(channels=8, num_convs=1, norm_groups=4)
  return c


def batch(size=8, *, seed=0, max_boxes=4, canvas=64, num_classes=3):
  """Random images; image i has i % (max_boxes + 1) boxes, so some have none."""
  rng = np.random.default_rng(seed)
  corner = rng.uniform(0, canvas / 2, (size, max_boxes, 2))
  side = rng.uniform(8, canvas / 2, (size, max_boxes, 2))
  counts = np.arange(size) % (max_boxes + 1)
  return {
    'images': rng.integers(0, 256, (size, canvas, canvas, 3), np.uint8),
    'image_sizes': np.full((size, 2), canvas, np.int32),
    'boxes': np.concatenate([corner, corner + side], -1).astype(np.float32),
    'labels': rng.integers(0, num_classes, (size, max_boxes)).astype(np.int32),
    'valid': np.arange(max_boxes) < counts[:, None],
    'image_ids': np.arange(size, dtype=np.int32),
    'scales': np.ones((size, 2), np.float32),
    'original_sizes': np.full((size, 2), canvas, np.int32),
    'dropped_boxes': np.zeros(size, np.int32),
  }


def save_data(path, *, num_train, num_eval):
  """A file of bright squares (class 0), bars (1) and nothing of class 2."""
  rng = np.random.default_rng(0)

  def split(count, first_id):
    images = rng.integers(0, 60, (count, 64, 64, 3), np.uint8)
    boxes, labels = [], []
    for i, image in enumerate(images):
      label = i % 2
      width, height = ((24, 24), (40, 12))[label]
      x, y = rng.integers(0, 64 - width), rng.integers(0, 64 - height)
      image[y : y + height, x : x + width] = 230
      boxes.append([x, y, x + width, y + height])
      labels.append(label)
    boxes = np.array(boxes, np.float32)
    sizes = np.full((count, 2), 64, np.int32)
    known = annotations.Annotations(
      image_ids=np.arange(first_id, first_id + count),
      sizes=sizes,
      starts=np.arange(count + 1),
      boxes=boxes,
      labels=np.array(labels, np.int32),
      is_crowd=np.zeros(count, bool),
      areas=(boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]),
      edge_sigma=np.full((count, 4), np.nan, np.float32),
      edge_kind=np.full((count, 4), -1, np.int8),
    )
    pixels = memory.MemoryPixels(
      images.reshape(-1), np.arange(count, dtype=np.int64) * 64 * 64 * 3, sizes
    )
    return known, pixels

  names, ids = ('square', 'bar', 'none'), (7, 9, 11)
  whole = memory.MemoryDataset(names, ids, split(num_train, 100), split(num_eval, 200))
  whole.save(path)


def share_compiled_functions(patch):
  """Runs whose configs compute the same share what they compile, by a MonkeyPatch."""
  built, build = {}, experiment.compiled_functions

  def shared(config, devices, steps_per_epoch):
    values = config.to_dict()
    values = {
      k: v for k, v in values.items() if k not in run_folder.bookkeeping(values)
    }
    values['seed'] = None
    where = [*map(str, devices.devices)]
    key = json.dumps([values, steps_per_epoch, where], sort_keys=True)
    if key not in built:
      built[key] = build(config, devices, steps_per_epoch)
    return built[key]

  patch.setattr(experiment, 'compiled_functions', shared)
