"""`coco_folder`: a folder in COCO form as a TFDS builder with coco/2017's features.

The folder holds images/ and annotations/instances_{train,val}.json. What was prepared
is found again by the content of the two json files and the images' names, sizes and
times of change; all that is in the json files, and every image, is checked on the way.
"""

import dataclasses
import hashlib
import io
import json
import logging
import math
import pathlib
import re
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds
import tqdm
from PIL import Image, UnidentifiedImageError

from gfl_jax.data import quiet

_LOG = logging.getLogger(__name__)

JSON_FILES = {'train': 'instances_train.json', 'validation': 'instances_val.json'}
MAX_ID = 2**31 - 1  # batches carry int32
MAX_ANNOTATION_ID = 2**63 - 1  # of COCO's own, some need more than 32 bits
# What Pillow raises for a file that is no image, damaged, or too large to be meant.
BAD_IMAGE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)


def prepare(config: Any) -> 'CocoFolder':
  """Prepares the folder at config.path below config.data_dir, unless that was done.

  Args: config: config.data; up to max_bad_images of the training images may be missing
    or damaged.
  Raises: FileNotFoundError: no folder or no json.
    ValueError: a json that is not in COCO form or does not agree with itself, a missing
      or damaged evaluation image, too many or only bad training images.
  """
  folder = pathlib.Path(config.path)
  builder = CocoFolder(
    data_dir=config.data_dir,
    config=CocoFolderConfig.from_folder(folder, config.max_bad_images),
    file_format='tfrecord',
  )
  builder.download_and_prepare()
  metadata: Any = builder.info.metadata
  bad = metadata['bad_images']
  _check_count(bad, config.max_bad_images)
  for problem in bad:
    _LOG.warning('left out of training: %s', problem)
  for split, count in metadata['degenerate_boxes'].items():
    if count:
      _LOG.warning('left out of %s: %d boxes without area in the image', split, count)
  return builder


@dataclasses.dataclass(eq=False)
class CocoFolderConfig(tfds.core.BuilderConfig):
  """A folder that was read and found in order; `name` tells its content."""

  folder: pathlib.Path = pathlib.Path()
  max_bad_images: int = 0
  categories: tuple[dict[str, Any], ...] = dataclasses.field(default=(), repr=False)
  splits: dict[str, dict[str, Any]] = dataclasses.field(
    default_factory=dict, repr=False
  )

  @classmethod
  def from_folder(cls, folder: pathlib.Path, max_bad_images: int) -> 'CocoFolderConfig':
    """Reads and checks both json files. Raises: see `prepare`."""
    if not folder.exists():
      raise FileNotFoundError(
        f'{folder} does not exist: give --config.data.path=FOLDER'
      )
    for part in ('images', 'annotations'):
      if not (folder / part).is_dir():
        raise FileNotFoundError(
          f'{str(folder)!r} (config.data.path) has no {part}/: it must be a folder '
          'with images/ and annotations/instances_{train,val}.json'
        )
    digest = hashlib.sha256()
    splits = {}
    for split, name in JSON_FILES.items():
      path = folder / 'annotations' / name
      if not path.is_file():
        raise FileNotFoundError(f'{path} is missing')
      content = path.read_bytes()
      splits[split] = _parse(path, content)
      names = [image['file_name'] for image in splits[split]['images']]
      files = [(name, _file_state(folder / 'images' / name)) for name in names]
      digest.update(content + repr(files).encode())
    categories = [tuple(s['categories']) for s in splits.values()]
    if categories[0] != categories[1]:
      raise ValueError(
        f'{folder}: the categories of {" and ".join(JSON_FILES.values())} differ'
      )
    # The folder's name is for people who look into data_dir.
    label = re.sub(r'[^A-Za-z0-9]+', '_', folder.resolve().name)
    name = f'{label}_{digest.hexdigest()[:16]}'
    return cls(
      name=name,
      folder=folder,
      max_bad_images=max_bad_images,
      categories=categories[0],
      splits=splits,
    )


class CocoFolder(tfds.core.GeneratorBasedBuilder):
  """Images and boxes of a folder in COCO form; not meant to be built by name."""

  VERSION = tfds.core.Version('1.0.0')
  # Nothing is downloaded; TFDS's own look-up needs a package that it does not require.
  url_infos: ClassVar = {}
  builder_config: CocoFolderConfig

  def _info(self) -> tfds.core.DatasetInfo:
    categories = self.builder_config.categories
    metadata = tfds.core.MetadataDict(
      category_ids=[c['id'] for c in categories],
      bad_images=[],
      degenerate_boxes=dict.fromkeys(JSON_FILES, 0),
    )
    return tfds.core.DatasetInfo(
      builder=self,
      description=__doc__,
      metadata=metadata,
      features=tfds.features.FeaturesDict(
        {
          'image': tfds.features.Image(encoding_format='jpeg'),
          'image/filename': tfds.features.Text(),
          'image/id': np.int64,
          'objects': tfds.features.Sequence(
            {
              'area': np.int64,
              'bbox': tfds.features.BBoxFeature(),
              'id': np.int64,
              'is_crowd': np.bool_,
              'label': tfds.features.ClassLabel(names=[c['name'] for c in categories]),
            }
          ),
        }
      ),
    )

  def _split_generators(self, dl_manager) -> dict[str, Any]:
    total = sum(len(s['images']) for s in self.builder_config.splits.values())
    progress = quiet.bar(total, 'reading images', 'image')
    return {split: self._generate_examples(split, progress) for split in JSON_FILES}

  def _generate_examples(
    self, split: str, progress: tqdm.tqdm
  ) -> Iterator[tuple[int, dict[str, Any]]]:
    config = self.builder_config
    metadata: Any = self.info.metadata
    content = config.splits[split]
    labels = {c['id']: label for label, c in enumerate(config.categories)}
    per_image: dict[int, list] = {image['id']: [] for image in content['images']}
    for annotation in content['annotations']:
      per_image[annotation['image_id']].append(annotation)
    for image in quiet.ticking(content['images'], progress):
      try:
        encoded, size = _read_image(
          config.folder / 'images' / image['file_name'], image
        )
      except BAD_IMAGE as error:
        if split == 'validation':
          raise ValueError(f'evaluation needs every image: {error}') from error
        metadata['bad_images'].append(str(error))
        _check_count(metadata['bad_images'], config.max_bad_images)
        continue
      objects = [_example_object(a, size, labels) for a in per_image[image['id']]]
      kept = [o for o in objects if o is not None]
      metadata['degenerate_boxes'][split] += len(objects) - len(kept)
      yield (
        image['id'],
        {
          'image': io.BytesIO(encoded),
          'image/filename': image['file_name'],
          'image/id': image['id'],
          'objects': kept,
        },
      )
    if split == 'train' and len(metadata['bad_images']) == len(content['images']):
      raise ValueError(
        f'{config.folder}: not one training image can be read: '
        + '; '.join(metadata['bad_images'])
      )


def _file_state(path: pathlib.Path) -> tuple[int, int] | None:
  """A file's size and time of change; None if there is no such file."""
  try:
    stat = path.stat()
  except (OSError, ValueError):  # a name that no file can have
    return None
  return stat.st_size, stat.st_mtime_ns


def _parse(path: pathlib.Path, content: bytes) -> dict[str, Any]:
  """The content of a COCO json, checked."""
  try:
    parsed = json.loads(content)
  except ValueError as error:
    raise ValueError(f'{path} is not a json file: {error}') from error
  for key in ('images', 'annotations', 'categories'):
    if not isinstance(parsed, dict) or not isinstance(parsed.get(key), list):
      raise ValueError(f'{path} has no list {key!r}: it is not in COCO form')
  required = {
    'images': ('id', 'file_name'),
    'annotations': ('image_id', 'category_id', 'bbox'),
    'categories': ('id', 'name'),
  }
  for kind, keys in required.items():
    for number, entry in enumerate(parsed[kind]):
      if not isinstance(entry, dict):
        raise ValueError(f'{path}: {kind}[{number}] is {entry!r}, not an object')
      missing = [key for key in keys if key not in entry]
      if missing:
        raise ValueError(f'{path}: {kind}[{number}] has no {missing[0]!r}')
  for kind in ('images', 'categories'):
    _check_ids([entry['id'] for entry in parsed[kind]], f'{path}: {kind}')
  for number, image in enumerate(parsed['images']):
    if not isinstance(image['file_name'], str):
      raise ValueError(
        f'{path}: images[{number}]: file_name {image["file_name"]!r} must be a string'
      )
  _check_annotations(path, parsed)
  categories = [{'id': c['id'], 'name': str(c['name'])} for c in parsed['categories']]
  names = [c['name'] for c in categories]
  if len(set(names)) < len(names):
    raise ValueError(f'{path}: two categories have the same name: {sorted(names)}')
  return parsed | {'categories': categories}


def _check_ids(ids: list, where: str):
  if not ids:
    raise ValueError(f'{where} is empty')
  seen = set()
  for i in ids:
    if not _is_integer(i, MAX_ID):
      raise ValueError(f'{where}: the id {i!r} must be an integer in 0..{MAX_ID}')
    if i in seen:
      raise ValueError(f'{where}: the id {i} is there twice')
    seen.add(i)


def _check_annotations(path: pathlib.Path, parsed: dict[str, Any]):
  images = {image['id'] for image in parsed['images']}
  categories = {category['id'] for category in parsed['categories']}
  for number, annotation in enumerate(parsed['annotations']):
    where = f'{path}: annotations[{number}]'
    image, category, box = (annotation[k] for k in ('image_id', 'category_id', 'bbox'))
    if not _is_integer(image, MAX_ID) or image not in images:
      raise ValueError(f'{where} is of image {image!r}, not in images')
    if not _is_integer(category, MAX_ID) or category not in categories:
      raise ValueError(
        f'{where} has category_id {category!r}, the categories are {sorted(categories)}'
      )
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
      raise ValueError(f'{where}: bbox {box!r} must be four numbers (x, y, w, h)')
    if not _is_integer(annotation.get('id', 0), MAX_ANNOTATION_ID):
      raise ValueError(f'{where}: the id {annotation["id"]!r} must be an integer')
    area = annotation.get('area')
    if area is not None and not _is_number(area):
      raise ValueError(f'{where}: area {area!r} must be a number')
    if annotation.get('iscrowd') not in (None, 0, 1):
      raise ValueError(f'{where}: iscrowd {annotation["iscrowd"]!r} must be 0 or 1')


def _is_integer(value: Any, limit: int) -> bool:
  return type(value) is int and 0 <= value <= limit  # True is an int, too


def _is_number(value: Any) -> bool:
  return type(value) is float or (type(value) is int and abs(value) <= MAX_ID)


def _check_count(bad: list[str], limit: int):
  if len(bad) > limit:
    raise ValueError(
      f'more training images are missing or damaged than max_bad_images={limit}: '
      + '; '.join(bad)
    )


def _read_image(path: pathlib.Path, entry: dict[str, Any]):
  """A JPEG or PNG file's bytes and its size (w, h); raises if it cannot be decoded."""
  try:
    encoded = path.read_bytes()
    with Image.open(io.BytesIO(encoded)) as image:
      image.load()
      if image.format not in ('JPEG', 'PNG'):  # TensorFlow's decoder reads these
        file = io.BytesIO()
        _rgb(image).save(file, 'png')
        encoded = file.getvalue()
  except BAD_IMAGE as error:
    raise ValueError(f'{path} {_reason(error)}') from error
  stated = (entry.get('width', image.width), entry.get('height', image.height))
  if image.size != stated:
    raise ValueError(f'{path} is {image.size} (w, h), the json says {stated}')
  return encoded, image.size


def _reason(error: Exception) -> str:
  """What is wrong with an image, in a user's words."""
  if isinstance(error, FileNotFoundError):
    return 'is missing'
  if isinstance(error, UnidentifiedImageError):
    return 'is not an image file that can be read'
  # The system's own errors would tell the path once more.
  return f'cannot be read: {getattr(error, "strerror", None) or error}'


def _rgb(image: Image.Image) -> Image.Image:
  """8 bits per channel; of 16 the upper ones, as TensorFlow reads a 16-bit PNG."""
  if image.mode.startswith('I;16'):
    return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert('RGB')
  if image.mode in ('I', 'F'):
    raise ValueError(
      f'its pixels are of mode {image.mode!r} (32 bits), whose range is not known: '
      'save it with 8 or 16 bits'
    )
  return image.convert('RGB')


def _example_object(annotation: dict[str, Any], size, labels) -> dict[str, Any] | None:
  """An annotation cut at the image's border; None if nothing of it is inside."""
  width, height = size
  x, y, box_width, box_height = (float(v) for v in annotation['bbox'])
  x0, x1 = max(x / width, 0.0), min((x + box_width) / width, 1.0)
  y0, y1 = max(y / height, 0.0), min((y + box_height) / height, 1.0)
  # Comparisons with NaN are False.
  if not (x1 > x0 and y1 > y0 and math.isfinite(x + y + box_width + box_height)):
    return None
  # An area that no part of the image can have (NaN is one) is not known.
  area = annotation.get('area')
  if area is None or not 0 <= area <= width * height:
    area = round((x1 - x0) * width * (y1 - y0) * height)
  return {
    'area': int(area),
    'bbox': tfds.features.BBox(y0, x0, y1, x1),
    'id': annotation.get('id', 0),
    'is_crowd': bool(annotation.get('iscrowd')),
    'label': labels[annotation['category_id']],
  }
