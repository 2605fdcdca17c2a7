"""Data sets in COCO form: COCO 2017 itself, and any folder of photographs.

A folder holds images/ and annotations/instances_{train,val}.json. It is prepared once:
its records are found again by the content of the two json files and by the images'
names, sizes and times of change.
"""

import hashlib
import logging
import pathlib
import re
from typing import Any

import tensorflow_datasets as tfds
from etils import epath

from gfl_jax.data import coco_json, coco_records
from gfl_jax.data.archives import Files, Folder, find
from gfl_jax.data.coco_records import Split
from gfl_jax.errors import MissingFileError, UserError

_LOG = logging.getLogger(__name__)

JSON_FILES = {'train': 'instances_train.json', 'validation': 'instances_val.json'}
FOLDER_VERSION = '1.0.0'
COCO_VERSION = '1.1.0'  # the one that TFDS reads
# Raise it when pixels.py or coco_json.py change their rules: older shards are not kept.
_RULES = b'2'
_MANY_OUTSIDE = 3  # boxes far outside their image; fewer may be slips
_SPLITS = {'train': 'train2017', 'validation': 'val2017', 'test': 'test2017'}


def prepare(config: Any) -> Any:
  """Prepares a data set below config.data_dir, unless that was done.

  What is left out or looks wrong is logged.

  Args:
    config: config.data, whose name is 'coco_folder' or 'coco/2017'. For COCO, its path
      is a folder with train2017, val2017 and, if wanted, test2017, each as a zip or
      unpacked, and with the annotations: annotations_trainval2017.zip (for test2017
      image_info_test2017.zip) or annotations/. The path may also be a folder of
      prepared records; for COCO it may be empty if those are below data_dir. Up to
      max_bad_images of the training images may be missing or damaged.

  Returns:
    The data set as a builder of TFDS.

  Raises:
    FileNotFoundError: one of these is missing.
    ValueError: a json that is not in COCO form or contradicts itself, a missing or
      damaged evaluation image, too many or only bad training images. For COCO also an
      unsafe or damaged zip, other categories, or records of other annotations.
  """
  is_2017 = config.name == 'coco/2017'
  given = config.path or (_records_of_2017(config) if is_2017 else '')
  if given and (epath.Path(given) / 'dataset_info.json').exists():
    builder = tfds.builder_from_directory(epath.Path(given))
  else:
    builder = _prepare_2017(config) if is_2017 else _prepare_folder(config)
  metadata: Any = builder.info.metadata or {}
  _log_problems(metadata, config.max_bad_images)
  return builder


def _log_problems(metadata: dict[str, Any], max_bad_images: int) -> None:
  bad = metadata.get('bad_images', [])
  coco_records.check_count(bad, max_bad_images)
  for problem in bad:
    _LOG.warning('left out of training: %s', problem)
  for split, count in metadata.get('degenerate_boxes', {}).items():
    if count:
      _LOG.warning('left out of %s: %d boxes without area in the image', split, count)
  for split, outside in metadata.get('boxes_outside', {}).items():
    if outside['count'] > _MANY_OUTSIDE:
      _LOG.warning(
        '%s: %d boxes reach far outside their image and are cut at its border, for'
        ' example %s. Are they corners (x0, y0, x1, y1)? COCO has (x, y, width,'
        ' height). Or do they belong to images of another size?',
        *(split, outside['count'], outside['example']),
      )


def _prepare_folder(config: Any) -> Any:
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
  # The name says what it is made of, to people. A moved folder may have another one.
  label = re.sub(r'[^A-Za-z0-9]+', '_', folder.resolve().name)
  done = epath.Path(config.data_dir, 'coco_folder').glob(f'*_{digest[:16]}')
  names = [path.name for path in done if (path / FOLDER_VERSION).exists()]
  name = names[0] if names else f'{label}_{digest[:16]}'
  return coco_records.write(('coco_folder', name, FOLDER_VERSION), splits, config)


def _records_of_2017(config: Any) -> Any:
  """Where TFDS looks for COCO 2017."""
  return epath.Path(config.data_dir, 'coco', '2017', COCO_VERSION)


def _prepare_2017(config: Any) -> Any:
  done = _records_of_2017(config)
  if not config.path:
    raise MissingFileError(
      f"{done} does not exist, and config.data.path is empty: give a folder with COCO's"
      ' zips'
    )
  root = pathlib.Path(config.path)
  if not root.is_dir():
    raise MissingFileError(
      f'{root} (config.data.path) is no folder'
      + (f'; for the records in {done} leave it empty' if done.exists() else '')
    )
  found = _files_of_2017(root)
  if done.exists():
    builder = tfds.builder_from_directory(done)
  else:
    splits = _read_2017(found, root)
    builder = coco_records.write(('coco', '2017', COCO_VERSION), splits, config)
  digests = {
    split: hashlib.sha256(annotations.read(json)).hexdigest()
    for split, (annotations, json, _) in found.items()
  }
  # Another process may have prepared other annotations meanwhile.
  _check_source(builder, digests, root)
  return builder


def _files_of_2017(root: pathlib.Path) -> dict[str, tuple[Files, str, Files]]:
  """For each split: the files with its json, the json's name, its images."""
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


def _read_2017(
  found: dict[str, tuple[Files, str, Files]], root: pathlib.Path
) -> dict[str, Split]:
  splits = {
    split: _read_json(annotations, json, images, annotated=split != 'test')
    for split, (annotations, json, images) in found.items()
  }
  categories = splits['train'].content['categories']
  names = sorted((c['id'], c['name']) for c in categories)
  wanted = zip(coco_json.COCO_CATEGORY_IDS, coco_json.COCO_NAMES, strict=True)
  if names != list(wanted):
    raise UserError(
      f'{root}: its {len(names)} categories are not the 80 of COCO 2017: use '
      "config.data.name='coco_folder'"
    )
  for split in splits.values():
    split.content['categories'].sort(key=lambda category: category['id'])
  return splits


def _check_source(builder: Any, digests: dict[str, str], root: pathlib.Path) -> None:
  """Raises a UserError if the records are of other annotations than those in `root`.

  Records of TFDS's own code or of older code do not say what they are made of: they
  only get a warning. A split that only one of the two has, as test, is not compared.

  Args:
    builder: the builder of the records.
    digests: SHA-256 of the json of each split in root.
    root: for messages.
  """
  metadata: Any = builder.info.metadata or {}
  known = metadata.get('annotations_sha256')
  if known is None:
    _LOG.warning(
      '%s does not say which annotations it was prepared from: it is used without'
      ' comparing it with %s.',
      *(builder.data_path, root),
    )
    return
  common = sorted(known.keys() & digests.keys())
  if differing := [split for split in common if known[split] != digests[split]]:
    raise UserError(
      f'{builder.data_path} was prepared from other annotations than those in {root}'
      f' ({", ".join(differing)}). To prepare these, give another'
      ' --config.data.data_dir or delete that folder; to use what is prepared, give no'
      ' --config.data.path'
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
