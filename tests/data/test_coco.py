"""Folders in COCO form: what is prepared, and every kind of bad input."""

import errno
import json
import os
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from gfl_jax import data
from gfl_jax.data import archives, coco, coco_json
from gfl_jax.errors import UserError
from tests.data import sets


def _config(folder, **changes):
  names = {'name': 'coco_folder', 'path': str(folder)}
  places = {'data_dir': str(folder.parent / 'datasets'), 'canvas': (96, 96)}
  return sets.config(**names, **places, max_long_side=96, **changes)


@pytest.fixture
def folder(tmp_path):
  return tmp_path / 'photos'


def test_a_folder_comes_back_as_it_was(folder):
  sets.write_folder(folder)
  dataset = data.load(_config(folder))
  assert dataset.class_names == ('even', 'odd')
  assert dataset.category_ids == (30, 20)
  assert (dataset.num_train, dataset.num_eval) == (6, 3)
  written = json.loads((folder / 'annotations/instances_val.json').read_text())
  truth = dataset.ground_truth()
  assert truth['categories'] == written['categories']
  images = {image['id']: image for image in truth['images']}
  by_image = {a['image_id']: a for a in truth['annotations']}
  for image, annotation in zip(written['images'], written['annotations'], strict=True):
    stored = images[image['id']]
    assert (stored['height'], stored['width']) == (image['height'], image['width'])
    got = by_image[image['id']]
    np.testing.assert_allclose(got['bbox'], annotation['bbox'], atol=1e-4)
    for key in ('category_id', 'area', 'iscrowd'):
      assert got[key] == annotation[key]


def test_a_changed_json_is_prepared_again_and_an_equal_one_is_not(folder):
  sets.write_folder(folder)
  data.load(_config(folder))
  (records,) = folder.parent.glob('datasets/coco_folder/*/*/*-train.tfrecord*')
  prepared_at = records.stat().st_mtime_ns
  data.load(_config(folder))
  assert records.stat().st_mtime_ns == prepared_at
  path = folder / 'annotations/instances_train.json'
  path.write_text(path.read_text() + ' ')
  (folder / 'images/1.jpg').unlink()
  with pytest.raises(ValueError, match='max_bad_images=0'):
    data.load(_config(folder))
  prepared = folder.parent.glob('datasets/coco_folder/*/1.0.0')
  assert len(list(prepared)) == 1  # the failed one left nothing


def test_a_replaced_image_is_prepared_again(folder):
  sets.write_folder(folder, train=2, validation=1)
  data.load(_config(folder))
  path = folder / 'images/3.jpg'
  before = path.stat()
  Image.new('RGB', (96, 64), 'red').save(path)
  os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
  image = next(data.load(_config(folder)).eval_batches(1))['images'][0]
  np.testing.assert_allclose(image[:48, :72], np.full((48, 72, 3), [254, 0, 0]), atol=1)


def test_an_image_that_was_missing_and_is_there_again_is_trained_on(folder):
  sets.write_folder(folder)
  path, away = folder / 'images/2.jpg', folder / 'away.jpg'
  path.rename(away)
  config = _config(folder, max_bad_images=1)
  assert data.load(config).counters['bad_images'] == 1
  away.rename(path)
  dataset = data.load(config)
  assert (dataset.counters['bad_images'], dataset.num_train) == (0, 6)


def test_bad_boxes_are_counted_and_cut(folder):
  nan = float('nan')
  bad = [[0, 0, 0, 5], [9, 9, -4, 5], [200, 3, 9, 9], [nan, 0, 9, 9], [1, 1, 1e999, 2]]
  cut, crowd = [-10, -10, 30, 40], [0, 0, 60, 60]

  def change(contents):
    common = {'image_id': 1, 'category_id': 20}
    contents['train']['annotations'] = [
      *(common | {'bbox': box} for box in bad),
      common | {'bbox': cut},
      common | {'bbox': crowd, 'iscrowd': 1},
    ]

  sets.write_folder(folder, train=1, change=change)
  dataset = data.load(_config(folder, short_side=(64, 64)))
  assert dataset.counters['degenerate_boxes'] == len(bad)
  assert dataset.counters['crowd_boxes'] == 1
  batch = next(dataset.train_batches(2, seed=0))
  assert batch['valid'].sum(-1).tolist() == [1, 1]
  width = batch['image_sizes'][0, 1]
  boxes = {tuple(np.round(box).tolist()) for box in batch['boxes'][:, 0]}
  assert boxes <= {(0, 0, 20, 30), (width - 20, 0, width, 30)}


def _set(key, value, *, split='train', kind='annotations', row=0):
  def change(contents):
    contents[split][kind][row][key] = value

  return change


def _remove(key, split='train'):
  return lambda contents: contents[split].pop(key)


@pytest.mark.parametrize(
  'change, message',
  [
    (_remove('annotations'), "instances_train.json .* 'annotations'"),
    (_remove('images', 'val'), "instances_val.json .* 'images'"),
    (_remove('categories'), "'categories'"),
    (_set('category_id', 31), r'annotations\[0\] .*category_id 31.*\[20, 30\]'),
    (_set('image_id', 99), r'annotations\[0\] .*image_id 99'),
    (_set('id', 1, kind='images', row=1), 'images: the id 1 .*twice'),
    (_set('id', 'a7', kind='images'), r"images\[0\]: id 'a7' .*integer"),
    (_set('id', 2**31, kind='images'), 'id 2147483648 .*2147483647'),
    (_set('bbox', [1, 2, 3]), r'bbox \[1, 2, 3\] .*four numbers'),
    (_set('name', 'other', kind='categories'), 'categories .* differ.*other'),
    (_set('name', 'odd', kind='categories'), r'same name.*\[\'odd\', \'odd\'\]'),
    (lambda c: c['train'].update(images=[], annotations=[]), 'images .*empty'),
    (_set('file_name', '9.jpg', split='val', kind='images'), 'evaluation .*9.jpg'),
    (_set('width', 1, split='val', kind='images'), r'\(96, 64\).* \(1, 64\)'),
    (_set('image_id', [1]), r'train.json: annotations\[0\].*image_id \[1\]'),
    (_set('image_id', True), r'annotations\[0\].*image_id True'),
    (_set('image_id', None), r'annotations\[0\].*image_id None'),
    (_set('category_id', {}), r'annotations\[0\].*category_id \{\}'),
    (_set('bbox', [1, 2, 3, None]), r'annotations\[0\]: bbox \[1, 2, 3, None\]'),
    (_set('bbox', [1, 2, True, 4]), r'annotations\[0\]: bbox \[1, 2, True, 4\]'),
    (_set('bbox', [1, 2, '3', 4]), r"annotations\[0\]: bbox \[1, 2, '3', 4\]"),
    (_set('bbox', [1, 2, 3, 10**400]), r'annotations\[0\]: bbox \[1, 2, 3, 1000'),
    (_set('id', 'a7'), r"annotations\[0\]: id 'a7' .*integer"),
    (_set('id', None), r'annotations\[0\]: id None .*integer'),
    (_set('area', '9'), r"annotations\[0\]: area '9' .*number"),
    (_set('iscrowd', '0'), r"annotations\[0\]: iscrowd '0' .*0 or 1"),
    (_set('file_name', 7, kind='images'), r'images\[0\]: file_name 7 .*string'),
    (_set('id', [], kind='images'), r'id \[\] .*integer'),
    (lambda c: c['train']['images'].append(7), r'images\[2\] is 7.*object'),
    (lambda c: c['train']['annotations'][1].pop('bbox'), r"annotations\[1\] .*'bbox'"),
  ],
)
def test_a_json_that_cannot_be_right_is_refused(folder, change, message):
  sets.write_folder(folder, train=2, validation=1, change=change)
  with pytest.raises((ValueError, FileNotFoundError), match=message):
    data.load(_config(folder))


@pytest.mark.parametrize('area', [None, float('nan'), -1, 1e300, 'no key'])
def test_an_unknown_area_is_that_of_the_box(folder, area):
  def change(contents):
    (annotation,) = contents['val']['annotations']
    annotation |= {'bbox': [10, 20, 30, 15.5], 'area': area}
    if area == 'no key':
      del annotation['area']

  sets.write_folder(folder, train=1, validation=1, change=change)
  (annotation,) = data.load(_config(folder)).ground_truth()['annotations']
  assert annotation['area'] == 465


def test_a_box_outside_its_evaluation_image_is_counted(folder, caplog):
  change = _set('bbox', [200, 3, 9, 9], split='val')
  sets.write_folder(folder, train=1, validation=2, change=change)
  dataset = data.load(_config(folder))
  assert len(dataset.ground_truth()['annotations']) == 1
  assert dataset.counters['degenerate_boxes'] == 0  # those are of training
  (record,) = caplog.records
  assert record.args == ('validation', 1)


def test_missing_folders_and_files_are_named(folder):
  with pytest.raises(FileNotFoundError, match=r'photos \(config.data.path\)'):
    data.load(_config(folder))
  folder.mkdir()
  for part in ('images', 'annotations'):
    with pytest.raises(FileNotFoundError, match=f"photos'.* no {part}/"):
      data.load(_config(folder))
    (folder / part).mkdir()
  shutil.rmtree(folder)
  sets.write_folder(folder)
  path = folder / 'annotations/instances_val.json'
  path.write_text('{"images": [')
  with pytest.raises(ValueError, match='instances_val.json .*json file'):
    data.load(_config(folder))
  path.unlink()
  with pytest.raises(FileNotFoundError, match='instances_val.json .*missing'):
    data.load(_config(folder))


def test_what_is_prepared_is_found_though_the_folder_has_moved(folder):
  sets.write_folder(folder)
  wanted = data.load(_config(folder))
  moved = folder.with_name('elsewhere')
  folder.rename(moved)
  found = data.load(_config(moved))
  (prepared,) = (folder.parent / 'datasets' / 'coco_folder').iterdir()
  shutil.rmtree(moved)
  # Without the images that it was made of.
  alone = data.load(_config(prepared / coco.FOLDER_VERSION))
  for dataset in (found, alone):
    assert dataset.checksum == wanted.checksum
    assert dataset.category_ids == wanted.category_ids
  next(alone.train_batches(4, seed=0))


def _truncate(path):
  path.write_bytes(path.read_bytes()[:-200])


def _enlarge(path):
  Image.new('1', (20_000, 20_000)).save(path, 'png')


def _replace(path):
  path.unlink()
  path.mkdir()


def _overwrite(path):
  path.write_bytes(b'<html>')


@pytest.mark.parametrize('spoil', [_truncate, _enlarge, lambda path: path.unlink()])
def test_bad_training_images_are_left_out_up_to_a_limit(folder, spoil):
  sets.write_folder(folder)
  spoil(folder / 'images/2.jpg')
  spoil(folder / 'images/5.jpg')
  dataset = data.load(_config(folder, max_bad_images=2))
  assert dataset.counters['bad_images'] == 2
  assert dataset.num_train == 4
  next(dataset.train_batches(4, seed=0))
  # The limit holds for what was prepared with another one, too.
  with pytest.raises(ValueError, match=r'max_bad_images=1: .*2\.jpg.*5\.jpg'):
    data.load(_config(folder, max_bad_images=1))


def test_training_images_that_are_all_missing_are_an_error(folder):
  sets.write_folder(folder, train=2)
  for name in ('1.jpg', '2.jpg'):
    (folder / 'images' / name).unlink()
  with pytest.raises(ValueError, match=r'photos: .*training.*1\.jpg.*2\.jpg'):
    data.load(_config(folder, max_bad_images=5))


def test_a_disk_that_fails_makes_no_image_bad(folder, monkeypatch):
  sets.write_folder(folder)
  read, failed = archives.Folder.read, []

  def fail_once(self, name):
    if not failed:
      failed.append(name)
      raise OSError(errno.EIO, os.strerror(errno.EIO), name)
    return read(self, name)

  monkeypatch.setattr(archives.Folder, 'read', fail_once)
  with pytest.raises(OSError, match='Input/output error'):
    data.load(_config(folder, max_bad_images=10))
  assert data.load(_config(folder, max_bad_images=10)).num_train == 6


@pytest.mark.parametrize(
  'spoil, reason',
  [
    (lambda path: path.unlink(), 'missing'),
    (_overwrite, 'not an image'),
    (_truncate, 'truncated'),
    (_enlarge, 'pixels'),
    (_replace, 'Is a directory'),
  ],
)
def test_a_bad_evaluation_image_is_an_error(folder, spoil, reason):
  sets.write_folder(folder)
  path = folder / 'images/8.jpg'
  spoil(path)
  with pytest.raises(ValueError, match=f'evaluation .*{path} .*{reason}') as raised:
    data.load(_config(folder, max_bad_images=5))
  assert str(raised.value).count(str(path)) == 1


@pytest.mark.parametrize('suffix', ['png', 'webp', 'bmp'])
def test_other_image_formats_give_the_same_boxes_and_pixels(folder, suffix):
  sets.write_folder(folder, suffix=suffix)
  batch = next(data.load(_config(folder, flip=0.0)).eval_batches(3))
  for row, image_id in enumerate(batch['image_ids']):
    with Image.open(folder / f'images/{image_id}.{suffix}') as image:
      height, width = batch['image_sizes'][row]
      expected = image.convert('RGB').resize((width, height), Image.Resampling.BOX)
    got = batch['images'][row, :height, :width].astype(float)
    assert np.abs(got - np.asarray(expected)).mean() < 6


def parsed(*, categories=({'id': 1, 'name': 'cat'},), annotations=()):
  content = {
    'images': [{'id': 1, 'file_name': 'a.jpg', 'width': 100, 'height': 50}],
    'annotations': list(annotations),
    'categories': list(categories),
  }
  return coco_json.parse('a.json', json.dumps(content).encode(), annotated=True)


@pytest.mark.parametrize('name', ['cat, "big"', ' cat\t', 'ü 猫', 7, "it's #1"])
def test_names_of_classes_are_text_of_one_line(name):
  (category,) = parsed(categories=[{'id': 1, 'name': name}])['categories']
  assert category['name'] == str(name).strip()
  # As TFDS keeps them: a line of a file each.
  assert f'{category["name"]}\n'.splitlines() == [category['name']]


@pytest.mark.parametrize(
  'name',
  ['a\nb', 'a\rb', 'a\x0bb', 'a\x85b', 'a\u2028b', 'a\x00b', '\ud800', '', ' ', None],
)
def test_names_that_a_line_cannot_hold_are_refused(name):
  with pytest.raises(UserError, match='name'):
    parsed(categories=[{'id': 1, 'name': name}])


@pytest.mark.parametrize(
  'box, outside',
  [
    ([10, 10, 90, 40], False),
    ([10, 10, 92, 40], False),  # slips of a pixel or two
    ([0, 0, 109, 50], False),
    ([40, 10, 90, 45], True),  # corners
    ([-30, 0, 60, 20], True),
    ([0, 0, float('nan'), 20], False),
  ],
)
def test_boxes_that_reach_far_beyond_their_image(box, outside):
  assert coco_json.is_far_outside(box, (100, 50)) == outside


def test_corners_for_sizes_are_suspected(folder, caplog):
  def change(contents):
    for annotation in contents['train']['annotations']:
      x, y, width, height = annotation['bbox']
      annotation['bbox'] = [x, y, x + width + 60, y + height + 60]

  sets.write_folder(folder, change=change)
  data.load(_config(folder))
  assert 'train: 6 boxes' in caplog.text and 'corners' in caplog.text
  assert re.search(r'\[\d+, .*\] of \d\.jpg, \((96, 64|64, 80)\)', caplog.text)


def test_the_order_of_categories_and_an_unused_root_do_no_harm(folder):
  def change(contents):
    root = {'id': 0, 'name': 'objects', 'supercategory': 'none'}
    for split in contents.values():
      for category in split['categories']:
        category['supercategory'] = 'objects'
      split['categories'].insert(0, root)
    contents['val']['categories'].reverse()

  sets.write_folder(folder, change=change)
  changed = data.load(_config(folder))
  plain = folder.parent / 'plain'
  sets.write_folder(plain)
  expected = data.load(_config(plain))
  assert changed.class_names == expected.class_names
  assert changed.category_ids == expected.category_ids
  labels = [next(d.eval_batches(3))['labels'] for d in (changed, expected)]
  np.testing.assert_array_equal(*labels)


def test_a_class_that_is_its_own_supercategory_is_no_root(folder):
  """As tools write it that know no supercategories, and COCO for its persons."""

  def change(contents):
    unused = [
      {'id': 40, 'name': 'third'},
      {'id': 50, 'name': 'fourth', 'supercategory': ['fourth', None]},
    ]
    for split in contents.values():
      for category in [*split['categories'], unused[0]]:
        category['supercategory'] = category['name']
      split['categories'] += unused

  sets.write_folder(folder, train=1, validation=1, change=change)
  dataset = data.load(_config(folder))
  assert dataset.class_names == ('even', 'odd', 'third', 'fourth')
