"""Data sets in COCO form as TFDS keeps them: COCO 2017 itself, and any folder.

Both get coco/2017's features; `tfds.builder('coco/2017', data_dir=...)` reads COCO. All
that is in the json files, and every image, is checked on the way; see `shards` for what
a killed preparation leaves. A folder, which holds images/ and
annotations/instances_{train,val}.json, is found again by the content of the two json
files and the images' names, sizes and times of change.
"""

import functools
import hashlib
import logging
import pathlib
import re
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from etils import epath
from tensorflow_datasets.core.dataset_info import DatasetIdentity

from gfl_jax.data import coco_classes, coco_json, shards
from gfl_jax.data.archives import Files, Folder, find
from gfl_jax.errors import MissingFileError, UserError, is_of_storage

_LOG = logging.getLogger(__name__)

JSON_FILES = {'train': 'instances_train.json', 'validation': 'instances_val.json'}
FOLDER_VERSION = '1.0.0'
_RULES = b'2'  # of pixels.py and coco_json.py: what older ones made is not gone on with
COCO_VERSION = '1.1.0'  # the one that TFDS reads
_MANY_OUTSIDE = 3  # boxes that reach far beyond their image; fewer may be slips
_SPLITS = {'train': 'train2017', 'validation': 'val2017', 'test': 'test2017'}


class Split(NamedTuple):
  """What a split is made of.

  Attributes:
    content: of its json, checked.
    images: the files that the json names.
    sha256: of its json.
    mark: differs where the json or an image does.
  """

  content: dict[str, Any]
  images: Files
  sha256: str
  mark: bytes


def prepare_folder(config: Any) -> Any:
  """Prepares the folder at config.path below config.data_dir, unless that was done.

  Args:
    config: config.data; up to max_bad_images of the training images may be missing or
      damaged. The path may also be what was prepared, where the images are no more.

  Returns:
    The data set as a builder of TFDS.

  Raises:
    FileNotFoundError: no folder or no json.
    ValueError: a json that is not in COCO form or does not agree with itself, a missing
      or damaged evaluation image, too many or only bad training images.
  """
  prepared = epath.Path(config.path)
  if config.path and (prepared / 'dataset_info.json').exists():
    return _told(tfds.builder_from_directory(prepared), config)
  folder = pathlib.Path(config.path)
  if not folder.exists():
    raise MissingFileError(f'{folder} (config.data.path) does not exist')
  for part in ('images', 'annotations'):
    if not (folder / part).is_dir():
      raise MissingFileError(
        f'{str(folder)!r} (config.data.path) has no {part}/: it must be a folder '
        'with images/ and annotations/instances_{train,val}.json'
      )
  images, annotations = Folder(folder / 'images'), Folder(folder / 'annotations')
  splits = {
    split: _read_json(annotations, name, images, annotated=True)
    for split, name in JSON_FILES.items()
  }
  digest = hashlib.sha256(b''.join(s.mark for s in splits.values())).hexdigest()
  # The folder's name is for people who look into data_dir; it may be another one now.
  label = re.sub(r'[^A-Za-z0-9]+', '_', folder.resolve().name)
  done = epath.Path(config.data_dir, 'coco_folder').glob(f'*_{digest[:16]}')
  names = [path.name for path in done if (path / FOLDER_VERSION).exists()]
  name = names[0] if names else f'{label}_{digest[:16]}'
  identity = 'coco_folder', name, FOLDER_VERSION
  return _told(_prepare(identity, splits, config, folder), config)


def _common_categories(splits: dict[str, Split], source: Any) -> list[dict[str, Any]]:
  """The categories of all splits, in the order of the training split's json.

  Without the root of Roboflow's exports: a category that nothing is of, and whose name
  another one has as its supercategory. Tools that know no supercategories give each
  category its own name.

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
        f'{source}: the categories of its json files differ: of training alone'
        f' {sorted(expected - found)}, of {name} alone {sorted(found - expected)}'
      )
  used = {a['category_id'] for s in splits.values() for a in s.content['annotations']}
  is_parent = lambda root: any(
    c['id'] != root['id'] and c.get('supercategory') == root['name'] for c in categories
  )
  roots = [c for c in categories if c['id'] not in used and is_parent(c)]
  for root in roots:
    _LOG.info('Left out: category %r, no object but the root of others.', root['name'])
  return [category for category in categories if category not in roots]


def _told(builder: Any, config: Any) -> Any:
  """A prepared data set, with lines for what is left out of it or looks wrong.

  Raises:
    ValueError: more than config.max_bad_images of the training images.
  """
  metadata: Any = builder.info.metadata or {}
  bad = metadata.get('bad_images', [])
  _check_count(bad, config.max_bad_images)
  for problem in bad:
    _LOG.warning('left out of training: %s', problem)
  for split, count in metadata.get('degenerate_boxes', {}).items():
    if count:
      _LOG.warning('left out of %s: %d boxes without area in the image', split, count)
  for split, outside in metadata.get('boxes_outside', {}).items():
    if outside['count'] > _MANY_OUTSIDE:
      _LOG.warning(
        '%s: %d boxes reach far beyond their image and are cut at its border, as %s.'
        " Are they corners (x0, y0, x1, y1), where COCO's are (x, y, width, height)? Or"
        ' of images of another size?',
        *(split, outside['count'], outside['example']),
      )
  return builder


def prepare_2017(config: Any) -> Any:
  """Prepares coco/2017 below config.data_dir from COCO's files, unless that was done.

  Args:
    config: config.data; its path is a folder with train2017, val2017 and, if wanted,
      test2017, each as the zip that COCO gives or unpacked, and with the annotations:
      annotations_trainval2017.zip, for test2017 image_info_test2017.zip, or
      annotations/. max_bad_images holds for the training images. The path may also be
      what was prepared, or empty where that is below data_dir.

  Returns:
    The data set as a builder of TFDS.

  Raises:
    FileNotFoundError: one of these is missing.
    ValueError: what `prepare_folder` raises it for, an unsafe or damaged zip,
      categories that are not COCO's, or what is prepared is of other annotations.
  """
  identity = 'coco', '2017', COCO_VERSION
  done = epath.Path(config.data_dir).joinpath(*identity)
  prepared = epath.Path(config.path or done)
  if (prepared / 'dataset_info.json').exists():
    return _told(tfds.builder_from_directory(prepared), config)
  if not config.path:
    raise MissingFileError(
      f'{done} does not exist, and config.data.path names no folder with the zips of'
      ' COCO to make it from'
    )
  root = pathlib.Path(config.path)
  if not root.is_dir():
    raise MissingFileError(
      f'{root} (config.data.path) is no folder'
      + (f'; {done} is used if it is named instead' if done.exists() else '')
    )
  found = _files_of_2017(root)
  if done.exists():
    builder = tfds.builder_from_directory(done)
    digests = {
      split: hashlib.sha256(annotations.read(json)).hexdigest()
      for split, (annotations, json, _) in found.items()
    }
  else:
    splits = _read_2017(found, root)
    digests = {name: split.sha256 for name, split in splits.items()}
    # Another process, with another path, may have been the first.
    builder = _prepare(identity, splits, config, root)
  _check_source(builder, digests, root)
  return _told(builder, config)


def _read_2017(
  found: dict[str, tuple[Files, str, Files]], root: pathlib.Path
) -> dict[str, Split]:
  splits = {
    split: _read_json(annotations, json, images, annotated=split != 'test')
    for split, (annotations, json, images) in found.items()
  }
  categories = splits['train'].content['categories']
  names = sorted((c['id'], c['name']) for c in categories)
  wanted = zip(coco_classes.COCO_CATEGORY_IDS, coco_classes.COCO_NAMES, strict=True)
  if names != list(wanted):
    raise UserError(
      f'{root}: its {len(names)} categories are not the 80 of COCO 2017: use '
      "config.data.name='coco_folder'"
    )
  for split in splits.values():
    split.content['categories'].sort(key=lambda category: category['id'])
  return splits


def _files_of_2017(root: pathlib.Path) -> dict[str, tuple[Files, str, Files]]:
  """Of each split: where its json is, what that is called, where its images are."""
  found = {}
  for split, name in _SPLITS.items():
    test = split == 'test'
    archive = 'image_info_test2017' if test else 'annotations_trainval2017'
    images = find(root, f'{name}.zip', name)
    annotations = find(root, f'{archive}.zip', 'annotations')
    json = f'image_info_{name}.json' if test else f'instances_{name}.json'
    if images and annotations and annotations.state(json):
      found[split] = annotations, json, images
    elif not test:
      raise MissingFileError(
        f'{str(root)!r} (config.data.path) needs {name}.zip or {name}/, and '
        f'{archive}.zip or annotations/ with {json}'
      )
  return found


def _check_source(builder: Any, digests: dict[str, str], root: pathlib.Path) -> None:
  """Raises a UserError if a data set was prepared from other annotations than `root`'s.

  That of TFDS's own code, or of older code, does not tell: a warning says so. A split
  that only one of the two has, as test, is not compared.

  Args:
    builder: of what is prepared.
    digests: SHA-256 of the json of each split of root.
    root: for messages.
  """
  metadata: Any = builder.info.metadata or {}
  known = metadata.get('annotations_sha256')
  if known is None:
    _LOG.warning(
      '%s does not tell what it was prepared from: it is used, whatever %s holds.',
      *(builder.data_path, root),
    )
    return
  common = sorted(known.keys() & digests.keys())
  if differing := [split for split in common if known[split] != digests[split]]:
    raise UserError(
      f'{builder.data_path} was prepared from other annotations than those of {root}'
      f' ({", ".join(differing)}): give another --config.data.data_dir, or delete that'
      ' folder, to prepare these; or no --config.data.path, to use what is prepared'
    )


def _read_json(
  annotations: Files, name: str, images: Files, *, annotated: bool
) -> Split:
  if annotations.state(name) is None:
    raise MissingFileError(f'{annotations.where(name)} is missing')
  content = annotations.read(name)
  parsed = coco_json.parse(annotations.where(name), content, annotated=annotated)
  names = [image['file_name'] for image in parsed['images']]
  states = [(name, images.state(name)) for name in names]
  digests = [hashlib.sha256(part) for part in (content, repr(states).encode())]
  mark = b''.join((_RULES, *(digest.digest() for digest in digests)))
  return Split(parsed, images, digests[0].hexdigest(), mark)


def _prepare(identity, splits: dict[str, Split], config: Any, source: Any) -> Any:
  """Writes the records unless they are there; returns their builder."""
  categories = _common_categories(splits, source)
  info = _dataset_info(identity, categories, config.data_dir)
  metadata: Any = info.metadata
  metadata['annotations_sha256'] = {name: s.sha256 for name, s in splits.items()}

  def check(facts: dict[str, list[shards.Facts]]) -> None:
    bad = sorted(problem for shard in facts['train'] for problem in shard.problems)
    _check_count(bad, config.max_bad_images)
    if len(bad) == len(splits['train'].content['images']):
      raise UserError(f'{source}: not one training image can be read: {"; ".join(bad)}')
    metadata['bad_images'] = bad
    metadata['degenerate_boxes'] = {
      split: sum(shard.degenerate_boxes for shard in done)
      for split, done in facts.items()
    }
    metadata['boxes_outside'] = {
      split: {
        'count': sum(shard.outside_boxes for shard in done),
        'example': next(filter(None, (shard.outside_example for shard in done)), ''),
      }
      for split, done in facts.items()
    }

  if epath.Path(info.data_dir).exists():
    return tfds.builder_from_directory(info.data_dir)
  labels = {c['id']: label for label, c in enumerate(categories)}
  annotations = {
    name: coco_json.annotations_of(split.content) for name, split in splits.items()
  }
  shards.prepare(
    info,
    {name: split.content['images'] for name, split in splits.items()},
    functools.partial(_make, splits, annotations, labels),
    mark=hashlib.sha256(b''.join(split.mark for split in splits.values())).hexdigest(),
    check=check,
  )
  return tfds.builder_from_directory(info.data_dir)


def _make(splits, annotations, labels, name: str, image: dict[str, Any]) -> shards.Made:
  """An image's example; a bad image of the training split is only left out."""
  try:
    read = _read_image(splits[name].images, image)
  except ValueError as error:
    if name != 'train':
      raise UserError(f'evaluation needs every image: {error}') from error
    return shards.Made(None, str(error))
  of_image = annotations[name][image['id']]
  example, degenerate = coco_json.make_example(image, of_image, read, labels)
  boxes = [a['bbox'] for a in of_image]
  outside = [box for box in boxes if coco_json.is_far_outside(box, read.size)]
  told = f'{outside[0]} of {image["file_name"]}, {read.size} (w, h)' if outside else ''
  return shards.Made(example, '', degenerate, len(outside), told)


def _read_image(files: Files, image: dict[str, Any]):
  where = files.where(image['file_name'])
  try:
    encoded = files.read(image['file_name'])
  except OSError as error:
    # Of the machine, not of the image: it must not be left out for that.
    if is_of_storage(error):
      raise
    raise UserError(f'{where} {coco_json.file_problem(error)}') from error
  return coco_json.checked_image(encoded, image, where)


def _dataset_info(identity, categories, data_dir) -> tfds.core.DatasetInfo:
  name, config, version = identity
  names = [c['name'] for c in categories]
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
    features=tfds.features.FeaturesDict(
      {
        'image': tfds.features.Image(encoding_format='jpeg'),
        'image/filename': tfds.features.Text(),
        'image/id': np.int64,
        'image/orientation': np.int64,  # EXIF's, to be applied; not of coco/2017's own
        'objects': tfds.features.Sequence(
          {
            'area': np.int64,
            'bbox': tfds.features.BBoxFeature(),
            'id': np.int64,
            'is_crowd': np.bool_,
            'label': tfds.features.ClassLabel(names=names),
          }
        ),
      }
    ),
  )


def _check_count(bad: list[str], limit: int) -> None:
  if len(bad) > limit:
    raise UserError(
      f'more training images are missing or damaged than max_bad_images={limit}: '
      + '; '.join(bad)
    )
