"""Checks of a COCO json and of its image files, and their form as TFDS examples."""

import io
import itertools
import json
import math
import unicodedata
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from gfl_jax.data import pixels
from gfl_jax.errors import UserError

# The classes of COCO 2017, in the order of its labels.
COCO_NAMES = tuple(
  name.replace('_', ' ')
  for name in """
    person bicycle car motorcycle airplane bus train truck boat traffic_light
    fire_hydrant stop_sign parking_meter bench bird cat dog horse sheep cow elephant
    bear zebra giraffe backpack umbrella handbag tie suitcase frisbee skis snowboard
    sports_ball kite baseball_bat baseball_glove skateboard surfboard tennis_racket
    bottle wine_glass cup fork knife spoon bowl banana apple sandwich orange broccoli
    carrot hot_dog pizza donut cake chair couch potted_plant bed dining_table toilet tv
    laptop mouse remote keyboard cell_phone microwave oven toaster sink refrigerator
    book clock vase scissors teddy_bear hair_drier toothbrush
  """.split()
)
# Ten of the ids 1..90 are not used.
COCO_CATEGORY_IDS = tuple(
  i for i in range(1, 91) if i not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)
)

MAX_ID = 2**31 - 1  # batches hold int32
# Control characters, line and paragraph separators, surrogates.
_NOT_IN_A_LINE = {'Cc', 'Zl', 'Zp', 'Cs'}


def _is_id(value: Any) -> bool:
  return type(value) is int and 0 <= value <= MAX_ID  # excludes True, which is an int


def _is_number(value: Any) -> bool:
  return type(value) is float or (type(value) is int and abs(value) <= MAX_ID)


def _is_box(value: Any) -> bool:
  return isinstance(value, list) and len(value) == 4 and all(map(_is_number, value))


def _is_annotation_id(value: Any) -> bool:
  return type(value) is int and 0 <= value < 2**63  # some of COCO's exceed 32 bits


def _is_class_name(value: Any) -> bool:
  """Whether TFDS can keep it, as a line of a text file."""
  text = str(value).strip()
  kinds = {unicodedata.category(character) for character in text}
  return bool(text) and type(value) in (str, int, float) and not kinds & _NOT_IN_A_LINE


_ID = _is_id, f'an integer in 0..{MAX_ID}'
# What each entry of a list must hold, and what it must be.
_REQUIRED = {
  'images': {
    'id': _ID,
    'file_name': (lambda value: isinstance(value, str), 'a string'),
  },
  'annotations': {
    'image_id': _ID,
    'category_id': _ID,
    'bbox': (_is_box, 'four numbers (x, y, w, h)'),
  },
  'categories': {
    'id': _ID,
    'name': (_is_class_name, 'one line of text without control characters'),
  },
}
_OPTIONAL = {  # of annotations
  'id': (_is_annotation_id, 'an integer'),
  'area': (lambda value: value is None or _is_number(value), 'a number'),
  'iscrowd': (lambda value: value in (None, 0, 1), '0 or 1'),
}
# All other keys are dropped while the json is parsed: COCO's polygons take gigabytes.
_KEYS = {*_REQUIRED, *_OPTIONAL, *(key for keys in _REQUIRED.values() for key in keys)}
_KEYS |= {'width', 'height', 'supercategory'}


def parse(path: str, content: bytes, *, annotated: bool) -> dict[str, Any]:
  """The content of a COCO json: images, annotations and categories.

  Args:
    path: the path of the json, for messages.
    content: its bytes.
    annotated: False for COCO's image_info_test2017.json, which has no annotations.

  Raises:
    ValueError: it is not in COCO form, or contradicts itself.
  """
  needed = lambda entry: {k: v for k, v in entry.items() if k in _KEYS}
  try:
    parsed = json.loads(content, object_hook=needed)
  except ValueError as error:
    raise UserError(f'{path} is not a json file: {error}') from error
  if isinstance(parsed, dict) and not annotated:
    parsed['annotations'] = []
  for kind in _REQUIRED:
    if not isinstance(parsed, dict) or not isinstance(parsed.get(kind), list):
      raise UserError(f'{path} has no list {kind!r}: it is not in COCO form')
    for number, entry in enumerate(parsed[kind]):
      _check_entry(entry, kind, f'{path}: {kind}[{number}]')
  known = {}
  for kind in ('images', 'categories'):
    ids = sorted(entry['id'] for entry in parsed[kind])
    if not ids:
      raise UserError(f'{path}: {kind} is empty')
    if twice := [a for a, b in itertools.pairwise(ids) if a == b]:
      raise UserError(f'{path}: {kind}: the id {twice[0]} occurs twice')
    known[kind] = dict.fromkeys(ids)
  for number, image in enumerate(parsed['images']):
    for side in ('width', 'height'):
      image[side] = _side(image.get(side), f'{path}: images[{number}]: {side}')
  for number, annotation in enumerate(parsed['annotations']):
    image, category = annotation['image_id'], annotation['category_id']
    where = f'{path}: annotations[{number}]'
    if image not in known['images']:
      raise UserError(f'{where} has image_id {image}, which is not in images')
    if category not in known['categories']:
      raise UserError(
        f'{where} has category_id {category}, the categories are'
        f' {list(known["categories"])}'
      )
  for category in parsed['categories']:
    category['name'] = str(category['name']).strip()
  names = sorted(category['name'] for category in parsed['categories'])
  if len(set(names)) < len(names):
    raise UserError(f'{path}: two categories have the same name: {names}')
  return parsed


def _check_entry(entry: Any, kind: str, where: str) -> None:
  if not isinstance(entry, dict):
    raise UserError(f'{where} is {entry!r}, not an object')
  for key in _REQUIRED[kind]:
    if key not in entry:
      raise UserError(f'{where} has no {key!r}')
  checks = _REQUIRED[kind] | (_OPTIONAL if kind == 'annotations' else {})
  for key, (is_valid, text) in checks.items():
    if key in entry and not is_valid(entry[key]):
      raise UserError(f'{where}: {key} {entry[key]!r} must be {text}')


def _side(value: Any, where: str) -> int | None:
  """A width or height in px; None where the json leaves it out, as some tools do."""
  if value in (None, '', 0):
    return None
  try:
    side = int(value)
    if side == float(value) and 0 < side <= MAX_ID and type(value) is not bool:
      return side
  except (TypeError, ValueError, OverflowError):
    pass
  raise UserError(f'{where} {value!r} must be a whole number of pixels, or left out')


class CheckedImage(NamedTuple):
  """An image file that can be read, as a record keeps it.

  Attributes:
    encoded: the file's own bytes or, if it is not plain, its pixels as PNG.
    size: (w, h) after the turn.
    orientation: the turn to be applied, as EXIF numbers them; 1 for none.
  """

  encoded: bytes
  size: tuple[int, int]
  orientation: int


def checked_image(encoded: bytes, entry: dict[str, Any], where: str) -> CheckedImage:
  """Checks an image file; `pixels` says which files are plain.

  The picture is turned upright, unless the json gives the size of the stored picture
  and not that of the upright one.

  Args:
    encoded: the content of an image file.
    entry: its entry in the json's images.
    where: the file's path, for messages.

  Raises:
    ValueError: it cannot be decoded, or its size differs from the json's.
  """
  try:
    opened = pixels.open_file(encoded)
    if not pixels.is_plain(opened):
      file = io.BytesIO()
      Image.fromarray(pixels.file_to_rgb(opened)).save(file, 'png')
      encoded = file.getvalue()
  except MemoryError:
    raise
  except Exception as error:  # Pillow's decoders raise many kinds
    raise UserError(f'{where} {file_problem(error)}') from error
  stated = entry.get('width'), entry.get('height')
  stored = opened.size
  upright = pixels.turned_size(stored, opened.orientation)
  for size, orientation in ((upright, opened.orientation), (stored, 1)):
    if all(s in (None, side) for s, side in zip(stated, size, strict=True)):
      return CheckedImage(encoded, size, orientation)
  turned = f', upright (by its EXIF) {upright}' if upright != stored else ''
  raise UserError(f'{where} is {stored} (w, h){turned}, the json says {stated}')


def make_example(
  image: dict[str, Any], annotations: list, read: CheckedImage, labels: dict[int, int]
) -> tuple[dict[str, Any], int]:
  """A TFDS example of an image, and the number of boxes that are left out.

  Boxes without area inside the image are left out.
  Args:
    image: entry of the json.
    annotations: the json's annotations of that image.
    read: the image.
    labels: the label of each category id.
  """
  objects = [_example_object(a, read.size, labels) for a in annotations]
  kept = [o for o in objects if o is not None]
  example = {
    'image': io.BytesIO(read.encoded),
    'image/filename': image['file_name'],
    'image/id': image['id'],
    'image/orientation': read.orientation,
    'objects': kept,
  }
  return example, len(objects) - len(kept)


def is_far_outside(box: list, size: tuple[int, int]) -> bool:
  """Whether more than a tenth of a box's width or height is outside its image.

  Args:
    box: (x, y, width, height) from the json.
    size: (w, h) of the image.
  """
  starts, lengths = box[:2], box[2:]
  return any(
    outside > max(2.0, 0.1 * length)
    for start, length, side in zip(starts, lengths, size, strict=True)
    for outside in (start + length - side, -start)
  )


def file_problem(error: Exception) -> str:
  """What is wrong with an image file, for messages that begin with its path."""
  if isinstance(error, FileNotFoundError):
    return 'is missing'
  if isinstance(error, UnidentifiedImageError):
    return 'is not an image file that can be read'
  # An OSError's own text would repeat the path.
  return f'cannot be read: {getattr(error, "strerror", None) or error}'


def _example_object(annotation: dict[str, Any], size, labels) -> dict[str, Any] | None:
  """An annotation cut at the image's border; None if nothing of it is inside."""
  width, height = size
  x, y, box_width, box_height = (float(v) for v in annotation['bbox'])
  x0, x1 = max(x / width, 0.0), min((x + box_width) / width, 1.0)
  y0, y1 = max(y / height, 0.0), min((y + box_height) / height, 1.0)
  # Comparisons with NaN are False.
  if not (x1 > x0 and y1 > y0 and math.isfinite(x + y + box_width + box_height)):
    return None
  # The area is unknown if no mask of this box can have it (NaN, too), or if it is 0,
  # which some tools write for every object: large ones would count as small. A mask may
  # be a pixel larger than its box each way, as boxes are rounded.
  area = annotation.get('area')
  largest = min((box_width + 1) * (box_height + 1), width * height)
  if area is None or not 0 < area <= largest:
    area = round((x1 - x0) * width * (y1 - y0) * height)
  return {
    'area': int(area),
    'bbox': np.array([y0, x0, y1, x1]),
    'id': annotation.get('id', 0),
    'is_crowd': bool(annotation.get('iscrowd')),
    'label': labels[annotation['category_id']],
  }
