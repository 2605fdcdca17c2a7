"""Small data sets for these tests: in memory, and as a folder in COCO form."""

import json

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from gfl_jax.data.annotations import Annotations
from gfl_jax.data.memory import MemoryDataset, MemoryPixels


def config(**changes):
  """config.data of a set of 64 x 64 canvases; nothing random but the mirror."""
  values = dict(
    name='file',
    path='',
    data_dir='',
    canvas=(64, 64),
    short_side=(48, 48),
    max_long_side=64,
    flip=0.5,
    zoom=(1.0, 1.0),
    max_boxes=4,
    keep_empty=False,
    cache=False,
    max_bad_images=0,
    num_train=6,
    num_validation=3,
  )
  assert set(changes) <= set(values)
  return ConfigDict(values | changes)


def annotations(sizes, boxes_per_image, *, crowd=(), first_id=1):
  """Boxes of class i % 2; `crowd` holds the positions of crowd boxes."""
  counts = [len(boxes) for boxes in boxes_per_image]
  boxes = np.array([b for boxes in boxes_per_image for b in boxes], np.float32)
  boxes = boxes.reshape(-1, 4)
  is_crowd = np.isin(np.arange(len(boxes)), crowd)
  with np.errstate(invalid='ignore'):
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
  return Annotations(
    image_ids=np.arange(len(sizes)) + first_id,
    sizes=np.array(sizes, np.int32),
    starts=np.concatenate([[0], np.cumsum(counts)]),
    boxes=boxes,
    labels=np.arange(len(boxes), dtype=np.int32) % 2,
    is_crowd=is_crowd,
    areas=areas,
    edge_sigma=np.full((len(boxes), 4), np.nan, np.float32),
    edge_kind=np.full((len(boxes), 4), -1, np.int8),
  )


def memory_pixels(images):
  """MemoryPixels of some [h, w, 3] arrays."""
  counts = np.array([image.size for image in images])
  return MemoryPixels(
    pixels=np.concatenate([image.ravel() for image in images]),
    starts=np.cumsum(counts) - counts,
    sizes=np.array([image.shape[:2] for image in images], np.int32),
  )


def memory_set(train, validation=None):
  """A MemoryDataset of two classes; black images of their original sizes."""
  splits = [
    (split, memory_pixels([np.zeros((*size, 3), np.uint8) for size in split.sizes]))
    for split in (train, validation or train)
  ]
  return MemoryDataset(('round', 'square'), (7, 9), *splits)


def rectangle_image(size, box):
  """White within a box, black elsewhere; [h, w, 3] uint8."""
  image = np.zeros((*size, 3), np.uint8)
  x0, y0, x1, y1 = box
  image[y0:y1, x0:x1] = 255
  return image


def write_folder(folder, *, train=6, validation=3, change=None, suffix='jpg'):
  """Writes a folder in COCO form, each image with one white rectangle.

  Args: change: called with {'train': json, 'val': json} before they are written.
  """
  rng = np.random.default_rng(0)
  (folder / 'images').mkdir(parents=True)
  (folder / 'annotations').mkdir()
  contents, image_id = {}, 0
  for split, count in (('train', train), ('val', validation)):
    images, boxes = [], []
    for _ in range(count):
      image_id += 1
      width, height = (96, 64) if image_id % 2 else (64, 80)
      x0, y0 = rng.integers(4, 20, 2)
      box = (x0, y0, *(rng.integers(20, 40, 2) + (x0, y0)))
      name = f'{image_id}.{suffix}'
      pixels = rectangle_image((height, width), box)
      Image.fromarray(pixels).save(folder / 'images' / name, quality=95)
      size = {'width': width, 'height': height}
      images.append({'id': image_id, 'file_name': name} | size)
      x0, y0, x1, y1 = (int(side) for side in box)
      boxes.append(
        {
          'id': image_id,
          'image_id': image_id,
          'category_id': (30, 20)[image_id % 2],
          'bbox': [x0, y0, x1 - x0, y1 - y0],
          'area': (x1 - x0) * (y1 - y0),
          'iscrowd': 0,
        }
      )
    categories = [{'id': 30, 'name': 'even'}, {'id': 20, 'name': 'odd'}]
    contents[split] = {'images': images, 'annotations': boxes, 'categories': categories}
  if change:
    change(contents)
  for split, content in contents.items():
    path = folder / 'annotations' / f'instances_{split}.json'
    path.write_text(json.dumps(content))
  return folder
