"""Checks of a COCO json and of its image files, and their form as TFDS examples."""

import io
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
MAX_ANNOTATION_ID = 2**63 - 1  # some of COCO's need more than 32 bits
# Control characters, line and paragraph separators, surrogates.
_NOT_IN_A_LINE = {'Cc', 'Zl', 'Zp', 'Cs'}
# All other keys are dropped while the json is parsed: COCO's polygons take gigabytes.
_KEYS = frozenset(
  'images annotations categories id file_name width height name'
  ' supercategory image_id category_id bbox area iscrowd'.split()
)
_REQUIRED_KEYS = {
  'images': ('id', 'file_name'),
  'annotations': ('image_id', 'category_id', 'bbox'),
  'categories': ('id', 'name'),
}


def parse(path: str, content: bytes, *, annotated: bool) -> dict[str, Any]:
  """The content of a COCO json: images, annotations and categories.

  Args:
    path: of the json, for messages.
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
  for kind, keys in _REQUIRED_KEYS.items():
    if not isinstance(parsed, dict) or not isinstance(parsed.get(kind), list):
      raise UserError(f'{path} has no list {kind!r}: it is not in COCO form')
    for number, entry in enumerate(parsed[kind]):
      if not isinstance(entry, dict):
        raise UserError(f'{path}: {kind}[{number}] is {entry!r}, not an object')
      for key in keys:
        if key not in entry:
          raise UserError(f'{path}: {kind}[{number}] has no {key!r}')
  image_ids, category_ids = (
    _checked_ids(parsed[kind], f'{path}: {kind}') for kind in ('images', 'categories')
  )
  for number, image in enumerate(parsed['images']):
    where = f'{path}: images[{number}]'
    if not isinstance(image['file_name'], str):
      raise UserError(f'{where}: file_name {image["file_name"]!r} must be a string')
    for side in ('width', 'height'):
      image[side] = _side(image.get(side), f'{where}: {side}')
  for number, annotation in enumerate(parsed['annotations']):
    where = f'{path}: annotations[{number}]'
    _check_annotation(annotation, where, image_ids, category_ids)
  for category in parsed['categories']:
    category['name'] = _class_name(category, path)
  names = [category['name'] for category in parsed['categories']]
  if len(set(names)) < len(names):
    raise UserError(f'{path}: two categories have the same name: {sorted(names)}')
  return parsed


def _class_name(category: dict[str, Any], path: str) -> str:
  """The name as one line of a text file, where TFDS keeps it, without outer blanks."""
  name = category['name']
  text = str(name).strip()
  kinds = {unicodedata.category(character) for character in text}
  if type(name) not in (str, int, float) or not text or kinds & _NOT_IN_A_LINE:
    raise UserError(
      f'{path}: category {category["id"]} has the name {name!r}: it must be one line of'
      ' text without control characters'
    )
  return text


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


def _checked_ids(entries: list[dict[str, Any]], where: str) -> set[int]:
  if not entries:
    raise UserError(f'{where} is empty')
  seen = set()
  for i in (entry['id'] for entry in entries):
    if not _is_integer(i, MAX_ID):
      raise UserError(f'{where}: the id {i!r} must be an integer in 0..{MAX_ID}')
    if i in seen:
      raise UserError(f'{where}: the id {i} occurs twice')
    seen.add(i)
  return seen


def _check_annotation(annotation, where: str, image_ids, category_ids) -> None:
  image, category, box = (annotation[k] for k in ('image_id', 'category_id', 'bbox'))
  if not _is_integer(image, MAX_ID) or image not in image_ids:
    raise UserError(f'{where} has image_id {image!r}, which is not in images')
  if not _is_integer(category, MAX_ID) or category not in category_ids:
    raise UserError(
      f'{where} has category_id {category!r}, the categories are {sorted(category_ids)}'
    )
  if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
    raise UserError(f'{where}: bbox {box!r} must be four numbers (x, y, w, h)')
  if not _is_integer(annotation.get('id', 0), MAX_ANNOTATION_ID):
    raise UserError(f'{where}: the id {annotation["id"]!r} must be an integer')
  area = annotation.get('area')
  if area is not None and not _is_number(area):
    raise UserError(f'{where}: area {area!r} must be a number')
  if annotation.get('iscrowd') not in (None, 0, 1):
    raise UserError(f'{where}: iscrowd {annotation["iscrowd"]!r} must be 0 or 1')


def _is_integer(value: Any, limit: int) -> bool:
  return type(value) is int and 0 <= value <= limit  # excludes True, which is an int


def _is_number(value: Any) -> bool:
  return type(value) is float or (type(value) is int and abs(value) <= MAX_ID)


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
  """Checks an image file; see `pixels` for what is plain.

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
    labels: of each category id.
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


def annotations_of(content: dict[str, Any]) -> dict[int, list]:
  """The annotations of each image id."""
  per_image: dict[int, list] = {image['id']: [] for image in content['images']}
  for annotation in content['annotations']:
    per_image[annotation['image_id']].append(annotation)
  return per_image


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
