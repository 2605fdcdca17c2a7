"""What a COCO json and its image files must be, checked, and as TFDS keeps it."""

import io
import json
import math
import unicodedata
from typing import Any, NamedTuple

import tensorflow_datasets as tfds
from PIL import Image, UnidentifiedImageError

from gfl_jax.data import pixels
from gfl_jax.errors import UserError

MAX_ID = 2**31 - 1  # batches carry int32
MAX_ANNOTATION_ID = 2**63 - 1  # of COCO's own, some need more than 32 bits
# Control characters, line and paragraph separators, halves of characters.
_NOT_IN_A_LINE = {'Cc', 'Zl', 'Zp', 'Cs'}
# Polygons and the rest are dropped while the json is parsed: gigabytes of COCO's.
_KEYS = frozenset(
  'images annotations categories id file_name width height name'
  ' supercategory image_id category_id bbox area iscrowd'.split()
)


def parse(path: str, content: bytes, *, annotated: bool) -> dict[str, Any]:
  """The content of a COCO json: images, annotations and categories.

  Args:
    path: of the json, for messages.
    content: its bytes.
    annotated: False for COCO's image_info_test2017.json, which has no annotations.

  Raises:
    ValueError: it is not in COCO form, or does not agree with itself.
  """
  needed = lambda entry: {k: v for k, v in entry.items() if k in _KEYS}
  try:
    parsed = json.loads(content, object_hook=needed)
  except ValueError as error:
    raise UserError(f'{path} is not a json file: {error}') from error
  if isinstance(parsed, dict) and not annotated:
    parsed['annotations'] = []
  for key in ('images', 'annotations', 'categories'):
    if not isinstance(parsed, dict) or not isinstance(parsed.get(key), list):
      raise UserError(f'{path} has no list {key!r}: it is not in COCO form')
  required = {
    'images': ('id', 'file_name'),
    'annotations': ('image_id', 'category_id', 'bbox'),
    'categories': ('id', 'name'),
  }
  for kind, keys in required.items():
    for number, entry in enumerate(parsed[kind]):
      if not isinstance(entry, dict):
        raise UserError(f'{path}: {kind}[{number}] is {entry!r}, not an object')
      missing = [key for key in keys if key not in entry]
      if missing:
        raise UserError(f'{path}: {kind}[{number}] has no {missing[0]!r}')
  for kind in ('images', 'categories'):
    _check_ids([entry['id'] for entry in parsed[kind]], f'{path}: {kind}')
  for number, image in enumerate(parsed['images']):
    where = f'{path}: images[{number}]'
    if not isinstance(image['file_name'], str):
      raise UserError(f'{where}: file_name {image["file_name"]!r} must be a string')
    for side in ('width', 'height'):
      image[side] = _side(image.get(side), f'{where}: {side}')
  _check_annotations(path, parsed)
  categories = [
    {**c, 'name': _class_name(c['name'], f'{path}: category {c["id"]}')}
    for c in parsed['categories']
  ]
  names = [c['name'] for c in categories]
  if len(set(names)) < len(names):
    raise UserError(f'{path}: two categories have the same name: {sorted(names)}')
  return parsed | {'categories': categories}


def _class_name(name: Any, where: str) -> str:
  """A name as TFDS keeps it, in a line of a text file, without blanks around it."""
  text = str(name).strip()
  kinds = {unicodedata.category(character) for character in text}
  if type(name) not in (str, int, float) or not text or kinds & _NOT_IN_A_LINE:
    raise UserError(
      f'{where} has the name {name!r}: it must be text of one line, without line breaks'
      ' and other control characters'
    )
  return text


def _side(value: Any, where: str) -> int | None:
  """A width or height in px; None where the json does not tell, as tools write it."""
  if value in (None, '', 0):
    return None
  try:
    side = int(value)
    if side == float(value) and 0 < side <= MAX_ID and type(value) is not bool:
      return side
  except (TypeError, ValueError, OverflowError):
    pass
  raise UserError(f'{where} {value!r} must be a whole number of pixels, or missing')


def _check_ids(ids: list, where: str):
  if not ids:
    raise UserError(f'{where} is empty')
  seen = set()
  for i in ids:
    if not _is_integer(i, MAX_ID):
      raise UserError(f'{where}: the id {i!r} must be an integer in 0..{MAX_ID}')
    if i in seen:
      raise UserError(f'{where}: the id {i} is there twice')
    seen.add(i)


def _check_annotations(path: str, parsed: dict[str, Any]):
  images = {image['id'] for image in parsed['images']}
  categories = {category['id'] for category in parsed['categories']}
  for number, annotation in enumerate(parsed['annotations']):
    where = f'{path}: annotations[{number}]'
    image, category, box = (annotation[k] for k in ('image_id', 'category_id', 'bbox'))
    if not _is_integer(image, MAX_ID) or image not in images:
      raise UserError(f'{where} is of image {image!r}, not in images')
    if not _is_integer(category, MAX_ID) or category not in categories:
      raise UserError(
        f'{where} has category_id {category!r}, the categories are {sorted(categories)}'
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
  return type(value) is int and 0 <= value <= limit  # True is an int, too


def _is_number(value: Any) -> bool:
  return type(value) is float or (type(value) is int and abs(value) <= MAX_ID)


class CheckedImage(NamedTuple):
  """An image file that can be read, as a record keeps it.

  Attributes:
    encoded: the file's own bytes; of one that is not plain, its pixels as PNG.
    size: (w, h), once turned.
    orientation: EXIF's number of the turn that is to be applied; 1 for none.
  """

  encoded: bytes
  size: tuple[int, int]
  orientation: int


def checked_image(encoded: bytes, entry: dict[str, Any], where: str) -> CheckedImage:
  """Checks an image file; see `pixels` for what is plain.

  Of the stored and the upright picture it is the one that has the size that the json
  gives; the upright one where the json does not tell.

  Args:
    encoded: the content of an image file.
    entry: its entry in the json's images.
    where: the file in a user's words.

  Raises:
    ValueError: it cannot be decoded, or is not of the size that the json says.
  """
  try:
    opened = pixels.open_file(encoded)
    if not pixels.is_plain(opened):
      file = io.BytesIO()
      Image.fromarray(pixels.file_to_rgb(opened)).save(file, 'png')
      encoded = file.getvalue()
  except MemoryError:
    raise
  except Exception as error:  # Pillow's decoders raise of many kinds
    raise UserError(f'{where} {file_problem(error)}') from error
  stated = entry.get('width'), entry.get('height')
  stored, orientation = opened.size, opened.orientation
  upright = pixels.turned_size(stored, orientation)

  def fits(size):
    return all(s in (None, side) for s, side in zip(stated, size, strict=True))

  if fits(upright):
    return CheckedImage(encoded, upright, orientation)
  if fits(stored):
    return CheckedImage(encoded, stored, 1)
  turned = f', upright (by its EXIF) {upright}' if upright != stored else ''
  raise UserError(f'{where} is {stored} (w, h){turned}, the json says {stated}')


def make_example(
  image: dict[str, Any], annotations: list, read: CheckedImage, labels: dict[int, int]
) -> tuple[dict[str, Any], int]:
  """An example with coco/2017's features and a turn, and how many boxes it lacks.

  Args:
    image: entry of the json.
    annotations: the json's of that image; boxes that have no area in the image are left
      out.
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
  """Whether more than a tenth of a box's width or height is beyond its image.

  Args:
    box: (x, y, width, height) as the json has it.
    size: (w, h) of the image.
  """
  starts, lengths = box[:2], box[2:]
  return any(
    beyond > max(2.0, 0.1 * length)
    for start, length, side in zip(starts, lengths, size, strict=True)
    for beyond in (start + length - side, -start)
  )


def annotations_of(content: dict[str, Any]) -> dict[int, list]:
  """The annotations of each image id."""
  per_image: dict[int, list] = {image['id']: [] for image in content['images']}
  for annotation in content['annotations']:
    per_image[annotation['image_id']].append(annotation)
  return per_image


def file_problem(error: Exception) -> str:
  """What is wrong with an image, in a user's words."""
  if isinstance(error, FileNotFoundError):
    return 'is missing'
  if isinstance(error, UnidentifiedImageError):
    return 'is not an image file that can be read'
  # The system's own errors would tell the path once more.
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
  # An area that no mask of this box can have (NaN is one) is not known; nor is 0, as
  # tools write it that do not compute areas: a large object would count as small. A
  # mask may have one pixel more each way, where the box is rounded or ends within it.
  area = annotation.get('area')
  largest = min((box_width + 1) * (box_height + 1), width * height)
  if area is None or not 0 < area <= largest:
    area = round((x1 - x0) * width * (y1 - y0) * height)
  return {
    'area': int(area),
    'bbox': tfds.features.BBox(y0, x0, y1, x1),
    'id': annotation.get('id', 0),
    'is_crowd': bool(annotation.get('iscrowd')),
    'label': labels[annotation['category_id']],
  }
