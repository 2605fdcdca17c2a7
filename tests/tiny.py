"""A detector small enough to compile in seconds, and batches for it."""

import numpy as np

from configs import demo_shapes


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
