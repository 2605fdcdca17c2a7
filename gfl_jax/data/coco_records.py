"""Data in COCO form as TFDS records, with the features of TFDS's coco/2017.

All of the json files and every image are checked on the way. `shards` says what an
interrupted preparation leaves behind.
"""

import collections
import functools
import hashlib
import logging
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from etils import epath
from tensorflow_datasets.core.dataset_info import DatasetIdentity

from gfl_jax.data import coco_json, shards
from gfl_jax.data.archives import Files
from gfl_jax.errors import UserError, is_of_storage

_LOG = logging.getLogger(__name__)


class Split(NamedTuple):
  """The source of a split.

  Attributes:
    content: the checked content of its json.
    images: the files that the json names.
    sha256: the digest of its json.
    mark: differs if the json or an image differs.
  """

  content: dict[str, Any]
  images: Files
  sha256: str
  mark: bytes


def features(
  class_names: Any, *, image: Any = None, **object_features: Any
) -> tfds.features.FeaturesDict:
  """The features of TFDS's coco/2017.

  Args:
    class_names: the name of each label.
    image: the feature of the image, if it is not any JPEG or PNG.
    object_features: more features of each object.
  """
  return tfds.features.FeaturesDict(
    {
      'image': image or tfds.features.Image(encoding_format='jpeg'),
      'image/filename': tfds.features.Text(),
      'image/id': np.int64,
      'objects': tfds.features.Sequence(
        {
          'area': np.int64,
          'bbox': tfds.features.BBoxFeature(),
          'id': np.int64,
          'is_crowd': np.bool_,
          'label': tfds.features.ClassLabel(names=class_names),
          **object_features,
        }
      ),
    }
  )


def write(identity: tuple[str, str, str], splits: dict[str, Split], config: Any) -> Any:
  """Writes records, unless they exist already; returns their TFDS builder.

  Args:
    identity: TFDS's name, config and version.
    splits: the source of each split, 'train' among them.
    config: config.data.

  Raises:
    ValueError: the categories of the splits differ, a bad evaluation image, too many or
      only bad training images.
  """
  source = config.path
  categories = _common_categories(splits, source)
  info = _dataset_info(identity, categories, config.data_dir)
  metadata: Any = info.metadata
  metadata['annotations_sha256'] = {name: s.sha256 for name, s in splits.items()}
  metadata |= {'degenerate_boxes': {}, 'boxes_outside': {}}

  def check(written: dict[str, list[shards.Shard]]) -> None:
    for split, done in written.items():
      notes = [note for shard in done for note in shard.notes]
      outside = [note['outside'] for note in notes if 'outside' in note]
      metadata['degenerate_boxes'][split] = sum(n.get('degenerate', 0) for n in notes)
      metadata['boxes_outside'][split] = {
        'count': sum(count for count, _ in outside),
        'example': outside[0][1] if outside else '',
      }
      if split == 'train':
        metadata['bad_images'] = sorted(n['bad'] for n in notes if 'bad' in n)
    bad = metadata['bad_images']
    check_count(bad, config.max_bad_images)
    if len(bad) == len(splits['train'].content['images']):
      raise UserError(f'{source}: no training image can be read: {"; ".join(bad)}')

  if not epath.Path(info.data_dir).exists():
    labels = {c['id']: label for label, c in enumerate(categories)}
    annotations = {name: collections.defaultdict(list) for name in splits}
    for name, split in splits.items():
      for annotation in split.content['annotations']:
        annotations[name][annotation['image_id']].append(annotation)
    mark = hashlib.sha256(b''.join(split.mark for split in splits.values())).hexdigest()
    shards.prepare(
      info,
      {name: split.content['images'] for name, split in splits.items()},
      functools.partial(_make, splits, annotations, labels),
      mark=mark,
      check=check,
    )
  return tfds.builder_from_directory(info.data_dir)


def check_count(bad: list[str], limit: int) -> None:
  """Raises a UserError if there are more than `limit` bad training images."""
  if len(bad) > limit:
    raise UserError(
      f'more training images are missing or damaged than max_bad_images={limit}: '
      + '; '.join(bad)
    )


def _common_categories(splits: dict[str, Split], source: str) -> list[dict[str, Any]]:
  """The categories of all splits, in the order of the training split's json.

  The root category of Roboflow's exports is left out: no object has it, and its name is
  the supercategory of others. (Tools that know no supercategories give each category
  its own name as supercategory.)

  Raises:
    ValueError: the splits differ in ids or names.
  """
  key = lambda category: (category['id'], category['name'])
  categories = splits['train'].content['categories']
  expected = set(map(key, categories))
  for name, split in splits.items():
    found = set(map(key, split.content['categories']))
    if found != expected:
      raise UserError(
        f'{source}: the categories of its json files differ: only training has'
        f' {sorted(expected - found)}, only {name} has {sorted(found - expected)}'
      )
  used = {a['category_id'] for s in splits.values() for a in s.content['annotations']}
  is_parent = lambda root: any(
    c['id'] != root['id'] and c.get('supercategory') == root['name'] for c in categories
  )
  roots = [c for c in categories if c['id'] not in used and is_parent(c)]
  for root in roots:
    _LOG.info('Left out: category %r, a parent without objects.', root['name'])
  return [category for category in categories if category not in roots]


def _make(splits, annotations, labels, name: str, image: dict[str, Any]):
  """An image's example and note; a bad image of the training split is left out."""
  try:
    read = _read_image(splits[name].images, image)
  except ValueError as error:
    if name != 'train':
      raise UserError(f'evaluation needs every image: {error}') from error
    return None, {'bad': str(error)}
  of_image = annotations[name][image['id']]
  example, degenerate = coco_json.make_example(image, of_image, read, labels)
  note: shards.Note = {'degenerate': degenerate} if degenerate else {}
  boxes = [a['bbox'] for a in of_image]
  outside = [box for box in boxes if coco_json.is_far_outside(box, read.size)]
  if outside:
    text = f'{outside[0]} of {image["file_name"]}, {read.size} (w, h)'
    note['outside'] = len(outside), text
  return example, note


def _read_image(files: Files, image: dict[str, Any]) -> coco_json.CheckedImage:
  where = files.where(image['file_name'])
  try:
    encoded = files.read(image['file_name'])
  except OSError as error:
    if is_of_storage(error):  # the image itself may be good: do not leave it out
      raise
    raise UserError(f'{where} {coco_json.file_problem(error)}') from error
  return coco_json.checked_image(encoded, image, where)


def _dataset_info(identity, categories, data_dir) -> tfds.core.DatasetInfo:
  name, config, version = identity
  of_coco = features([c['name'] for c in categories])
  return tfds.core.DatasetInfo(
    builder=DatasetIdentity(
      name=name,
      config_name=config,
      version=tfds.core.Version(version),
      data_dir=str(epath.Path(data_dir).joinpath(*identity)),
      module_name='',
    ),
    description=__doc__,
    metadata=tfds.core.MetadataDict(category_ids=[c['id'] for c in categories]),
    # The turn to be applied, as EXIF numbers them; TFDS's own records have none.
    features=tfds.features.FeaturesDict({**of_coco, 'image/orientation': np.int64}),
  )
