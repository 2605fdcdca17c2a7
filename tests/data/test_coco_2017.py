"""COCO 2017 from its zips or folders: what TFDS itself would write, killed or not."""

import errno
import fcntl
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.object_detection import coco as tfds_coco

from gfl_jax import data
from gfl_jax.data import archives, coco_json, pipeline, shards
from gfl_jax.errors import UserError
from tests.data import sets

IDS, NAMES = coco_json.COCO_CATEGORY_IDS, coco_json.COCO_NAMES
SPLITS = ('train', 'validation', 'test')
COUNTS = {'train2017': 7, 'val2017': 3, 'test2017': 1}


def _write_coco(root, ids=IDS):
  """Unpacked COCO: the first image of a split is empty, the second portrait; all others
  have a crowd and an object of class 90."""
  rng = np.random.default_rng(0)
  (root / 'annotations').mkdir(parents=True)
  image_id = 0
  for name, count in COUNTS.items():
    (root / name).mkdir()
    images, annotations = [], []
    for number in range(count):
      image_id += 1
      width, height = (48, 64) if number == 1 else (64, 48)
      file = f'{image_id:012d}.jpg'
      pixels = rng.integers(0, 256, (6, 8, 3), np.uint8)
      Image.fromarray(pixels).resize((width, height)).save(root / name / file)
      image = {'id': image_id, 'file_name': file, 'width': width, 'height': height}
      images.append(image | {'license': 1})
      boxes = [([2.5, 3, 30, 20.25], 90, 0), ([0, 0, 40, 48], 13, 1)]
      annotations += [
        {
          'id': 10 * image_id + i,
          'image_id': image_id,
          'bbox': box,
          'category_id': category,
          'iscrowd': crowd,
          'area': 100.5,
          'segmentation': [[2.5, 3, 30, 3, 30, 20]],
        }
        for i, (box, category, crowd) in enumerate(boxes if number else [])
      ]
    content = {
      'info': {'year': 2017},
      'images': images,
      'categories': [{'id': i, 'name': NAMES[IDS.index(i)]} for i in ids],
    }
    test = name == 'test2017'
    if not test:
      content['annotations'] = annotations
    file = f'{"image_info" if test else "instances"}_{name}.json'
    (root / 'annotations' / file).write_text(json.dumps(content))
  return root


def _zip(folder, target):
  """The same as COCO gives it."""
  target.mkdir()
  parts = {
    **{name: [name] for name in COUNTS},
    'annotations_trainval2017': ['annotations'],
    'image_info_test2017': ['annotations'],
  }
  for archive, folders in parts.items():
    with zipfile.ZipFile(target / f'{archive}.zip', 'w') as file:
      for path in sorted(p for f in folders for p in (folder / f).iterdir()):
        if ('image_info' in path.name) == ('image_info' in archive):
          file.write(path, path.relative_to(folder))
  return target


@pytest.fixture(scope='module')
def coco(tmp_path_factory):
  return _write_coco(tmp_path_factory.mktemp('coco') / 'unpacked')


@pytest.fixture(scope='module')
def zips(coco):
  return _zip(coco, coco.parent / 'zips')


@pytest.fixture
def small_shards(monkeypatch):
  monkeypatch.setattr(shards, 'IMAGES_PER_SHARD', 2)


def _config(path, data_dir):
  return sets.config(
    name='coco/2017', path=str(path), data_dir=str(data_dir), canvas=(48, 64)
  )


def _files(data_dir):
  """Content of what was prepared, without what reading it adds."""
  folder = data_dir / 'coco/2017/1.1.0'
  return {p.name: p.read_bytes() for p in folder.iterdir() if 'index' not in p.name}


def _examples(builder, split):
  found = tfds.as_numpy(builder.as_dataset(split=split))
  return {int(example['image/id']): example for example in found}


def test_it_is_what_tfds_itself_would_write(coco, zips, tmp_path):
  pipeline.prepare(_config(zips, tmp_path / 'ours'))
  ours = tfds.builder('coco/2017', data_dir=tmp_path / 'ours')

  with tfds.core.registered.skip_registration():

    class Coco(tfds_coco.Coco):
      def _split_generators(self, dl_manager):
        kind = tfds_coco.AnnotationType
        return {
          split: self._generate_examples(
            image_dir=str(coco),
            annotation_dir=str(coco),
            split_name=name,
            annotation_type=kind.NONE if split == 'test' else kind.BBOXES,
            panoptic_dir=None,
          )
          for split, name in zip(SPLITS, COUNTS, strict=True)
        }

  theirs = Coco(config='2017', data_dir=tmp_path / 'theirs')
  theirs.download_and_prepare()
  assert ours.info.features.to_json() == theirs.info.features.to_json()
  labels = [b.info.features['objects']['label'].names for b in (ours, theirs)]
  assert labels == [list(NAMES)] * 2
  assert ours.info.splits.keys() == theirs.info.splits.keys()
  for split, count in zip(SPLITS, COUNTS.values(), strict=True):
    mine, expected = _examples(ours, split), _examples(theirs, split)
    assert len(mine) == count and mine.keys() == expected.keys()
    for image_id, example in expected.items():
      for key, value in example.items():
        if key != 'objects':
          np.testing.assert_array_equal(mine[image_id][key], value)
      for key, value in example['objects'].items():
        np.testing.assert_array_equal(mine[image_id]['objects'][key], value, key)


def test_zips_and_folders_give_the_same_bytes(coco, zips, tmp_path):
  for name, source in (('a', coco), ('b', zips)):
    pipeline.prepare(_config(source, tmp_path / name))
  assert _files(tmp_path / 'a') == _files(tmp_path / 'b')


def test_it_is_trained_on_with_labels_0_to_79(zips, tmp_path):
  dataset = data.load(_config(zips, tmp_path))
  assert dataset.class_names == NAMES and dataset.category_ids == IDS
  assert (dataset.num_train, dataset.num_eval) == (6, 3)
  assert dataset.counters['images_without_boxes'] == 1
  assert dataset.counters['crowd_boxes'] == 6
  assert dataset.canvases == ((48, 64), (64, 48))
  batch = next(dataset.train_batches(5, seed=0))
  assert batch['labels'][batch['valid']].tolist() == [79] * 5
  annotations = dataset.ground_truth()['annotations']
  assert {(a['category_id'], a['iscrowd']) for a in annotations} == {(90, 0), (13, 1)}


def test_a_killed_preparation_goes_on_where_it_was(zips, tmp_path, small_shards):
  program = f"""
import time
from gfl_jax.data import coco_json, pipeline, shards
from tests.data import test_coco_2017 as test
shards.IMAGES_PER_SHARD = 2
whole = coco_json.checked_image
def slow(*arguments):
  time.sleep(0.3)
  return whole(*arguments)
coco_json.checked_image = slow
pipeline.prepare(test._config({str(zips)!r}, {str(tmp_path / 'killed')!r}))
"""
  process = subprocess.Popen([sys.executable, '-c', program], stderr=subprocess.PIPE)
  parent = tmp_path / 'killed/coco/2017'
  limit = time.monotonic() + 300
  while len(list(parent.glob('.*/facts/*.json'))) < 2 and time.monotonic() < limit:
    time.sleep(0.01)
  process.send_signal(signal.SIGKILL)
  process.communicate()
  assert process.returncode == -signal.SIGKILL
  assert not (parent / '1.1.0').exists()
  with pytest.raises(FileNotFoundError):  # nobody takes it for finished
    data.load(_config('', tmp_path / 'killed'))
  done = sorted(p.stem for p in parent.glob('.*/facts/*.json'))
  assert 2 <= len(done) < 7
  before = {n: next(parent.glob(f'.*/data/{n}')).stat().st_mtime_ns for n in done}

  pipeline.prepare(_config(zips, tmp_path / 'killed'))
  pipeline.prepare(_config(zips, tmp_path / 'straight'))
  assert _files(tmp_path / 'killed') == _files(tmp_path / 'straight')
  after = {n: (parent / '1.1.0' / n).stat().st_mtime_ns for n in done}
  assert after == before  # what was done was not done again
  assert sorted(p.name for p in parent.iterdir()) == ['.1.1.0.lock', '1.1.0']


def _stop_after(monkeypatch, source, data_dir, count):
  """Ends a preparation by a full disk after so many shards."""
  write, written = shards._write_shard, []

  def full(*arguments):
    if len(written) == count:
      raise OSError(28, 'No space left on device')
    written.append(write(*arguments))
    return written[-1]

  with monkeypatch.context() as patch:
    patch.setattr(shards, '_write_shard', full)
    with pytest.raises(OSError, match='No space'):
      pipeline.prepare(_config(source, data_dir))
  return written


def test_a_shard_that_was_damaged_meanwhile_is_written_again(
  zips, tmp_path, small_shards, monkeypatch
):
  first, _ = _stop_after(monkeypatch, zips, tmp_path / 'a', 2)
  (path,) = (tmp_path / 'a').glob(f'**/data/{first.name}')
  content = bytearray(path.read_bytes())
  content[100] ^= 1
  path.write_bytes(content)
  for name in ('a', 'b'):
    pipeline.prepare(_config(zips, tmp_path / name))
  assert _files(tmp_path / 'a') == _files(tmp_path / 'b')


def test_a_preparation_of_other_input_is_not_continued(
  coco, zips, tmp_path, small_shards, monkeypatch
):
  _stop_after(monkeypatch, zips, tmp_path, 2)
  (begun,) = (tmp_path / 'coco/2017').glob('.*incomplete*')
  _stop_after(monkeypatch, coco, tmp_path, 0)  # times of change, not sums: another mark
  (other,) = (tmp_path / 'coco/2017').glob('.*incomplete*')
  assert begun != other


def test_a_second_process_waits_for_the_first(zips, tmp_path):
  folder = tmp_path / 'coco/2017'
  folder.mkdir(parents=True)
  second = threading.Thread(
    target=pipeline.prepare, args=[_config(zips, tmp_path)], daemon=True
  )
  with (folder / '.1.1.0.lock').open('w') as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    second.start()
    second.join(timeout=1)
    assert second.is_alive() and not list(folder.glob('*incomplete*'))
  second.join(timeout=100)
  assert (folder / '1.1.0').exists()


def test_what_another_process_prepared_meanwhile_is_compared(
  coco, tmp_path, monkeypatch
):
  other = shutil.copytree(coco, tmp_path / 'other')
  file = other / 'annotations' / 'instances_train2017.json'
  file.write_text(file.read_text() + ' ')
  prepare = shards.prepare

  def after_another(*arguments, **keywords):
    monkeypatch.setattr(shards, 'prepare', prepare)
    pipeline.prepare(_config(other, tmp_path / 'out'))
    prepare(*arguments, **keywords)

  monkeypatch.setattr(shards, 'prepare', after_another)
  with pytest.raises(UserError, match=r'annotations .*train'):
    pipeline.prepare(_config(coco, tmp_path / 'out'))


def test_checksums_find_what_is_damaged_later(zips, tmp_path):
  config = _config(zips, tmp_path)
  assert pipeline.prepare(config).endswith('1.1.0: 7 files verified')
  folder = tmp_path / 'coco/2017/1.1.0'
  sums = ['sha256sum', '--check', '--strict', '--quiet', shards.SUMS]
  subprocess.run(sums, cwd=folder, check=True)
  (path,) = folder.glob('*validation*')
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 1
  path.write_bytes(content)
  with pytest.raises(ValueError, match=f'{path.name} .*{shards.SUMS}'):
    pipeline.prepare(config)


def test_what_is_missing_is_named(coco, tmp_path):
  for name in ('train2017', 'annotations'):
    (tmp_path / name).symlink_to(coco / name)
  with pytest.raises(FileNotFoundError, match='val2017.zip or val2017/'):
    pipeline.prepare(_config(tmp_path, tmp_path / 'out'))


def test_other_categories_are_refused(tmp_path):
  folder = _write_coco(tmp_path / 'coco', (13, 90))
  with pytest.raises(ValueError, match='2 categories .*80.*coco_folder'):
    pipeline.prepare(_config(folder, tmp_path / 'out'))


@pytest.mark.parametrize('spoil', ['missing', 'changed'])
def test_a_bad_member_of_a_zip_is_named(coco, tmp_path, spoil):
  source = _zip(coco, tmp_path / 'zips')
  path = source / 'val2017.zip'
  name = f'val2017/{8:012d}.jpg'
  if spoil == 'missing':
    with zipfile.ZipFile(path, 'w') as file:
      for image in sorted((coco / 'val2017').iterdir())[1:]:
        file.write(image, f'val2017/{image.name}')
  else:
    with zipfile.ZipFile(path) as file:
      start = file.getinfo(name).header_offset
    content = bytearray(path.read_bytes())
    content[start + 300] ^= 1
    path.write_bytes(content)
  problem = {'missing': 'missing', 'changed': 'Bad CRC-32'}[spoil]
  with pytest.raises(ValueError, match=rf'val2017.zip: {name} .*{problem}'):
    pipeline.prepare(_config(source, tmp_path / 'out'))
  assert not (tmp_path / 'out/coco/2017/1.1.0').exists()


def test_a_higher_limit_goes_on_where_too_many_images_were_bad(
  coco, tmp_path, small_shards, caplog
):
  source = _zip(coco, tmp_path / 'zips')
  with zipfile.ZipFile(source / 'train2017.zip', 'w') as file:
    for image in sorted((coco / 'train2017').iterdir())[1:]:
      file.write(image, f'train2017/{image.name}')
  config = _config(source, tmp_path / 'out')
  config.max_bad_images = 0
  with pytest.raises(ValueError, match='max_bad_images=0'):
    pipeline.prepare(config)
  done = list((tmp_path / 'out/coco/2017').glob('.*/facts/*.json'))
  assert done and not (tmp_path / 'out/coco/2017/1.1.0').exists()
  config.max_bad_images = 1
  with caplog.at_level('INFO'):
    pipeline.prepare(config)
  assert f'{len(done)} shards' in caplog.text


def _member(name, content=b'content', **attributes):
  """A zip with one more member, whose entry has some attributes."""

  def write(path):
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as file:
      file.writestr('train2017/1.jpg', b'first')
      info = zipfile.ZipInfo('x' * len(name))
      info.compress_type = zipfile.ZIP_DEFLATED
      for key, value in attributes.items():
        setattr(info, key, value)
      file.writestr(info, content)
    raw = path.read_bytes()  # zipfile itself mends some of these names
    path.write_bytes(raw.replace(b'x' * len(name), name.encode()))

  return write


def _changed(change):
  def write(path):
    _member('train2017/2.jpg')(path)
    path.write_bytes(change(path.read_bytes()))

  return write


def _twice(path):
  _member('train2017/2.jpg')(path)
  path.write_bytes(path.read_bytes().replace(b'train2017/2', b'train2017/1'))


def _encrypted(raw):
  """The flag in the table of contents, of its first entry."""
  raw = bytearray(raw)
  raw[raw.index(b'PK\x01\x02') + 8] |= 1
  return bytes(raw)


def _overlapping(raw):
  """The table says that the first member takes 5 MB of the archive."""
  raw = bytearray(raw)
  start = raw.index(b'PK\x01\x02') + 20
  raw[start : start + 4] = (5_000_000).to_bytes(4, 'little')
  return bytes(raw)


OUTSIDE, STRANGE = 'name .*out of the archive', 'name .*systems'
UNSAFE = {
  'parent': (_member('train2017/../../passwd'), OUTSIDE),
  'parent alone': (_member('..'), OUTSIDE),
  'absolute': (_member('/etc/passwd'), OUTSIDE),
  'drive': (_member('C:/windows/a.jpg'), STRANGE),
  'backslashes': (_member('..\\..\\passwd'), STRANGE),
  'nul': (_member('train2017/a\0.jpg'), STRANGE),
  'link': (_member('train2017/l', external_attr=0o120777 << 16), 'link'),
  'device': (_member('train2017/d', external_attr=0o020666 << 16), 'device'),
  'bomb': (_member('train2017/b', bytes(5_000_000)), '200 times'),
  'twice': (_twice, 'twice'),
  'encrypted': (_changed(_encrypted), 'encrypted'),
  'overlapping': (_changed(_overlapping), 'overlap|damaged'),
  'cut off': (_changed(lambda raw: raw[:-30]), 'damaged'),
  'no zip': (_changed(lambda raw: b'<html>'), 'damaged'),
  'empty': (_changed(lambda raw: b''), 'damaged'),
}


@pytest.mark.filterwarnings('ignore:Duplicate name')
@pytest.mark.parametrize('write, problem', UNSAFE.values(), ids=UNSAFE)
def test_unsafe_archives_are_refused(tmp_path, write, problem):
  path = tmp_path / 'train2017.zip'
  write(path)
  with pytest.raises(ValueError, match=f'train2017.zip.*({problem})'):
    archives.Archive(path, 'train2017')


def test_a_member_that_is_larger_than_it_says_is_not_read_on(tmp_path):
  path = tmp_path / 'train2017.zip'
  _member('train2017/2.jpg', os.urandom(1000))(path)
  raw = bytearray(path.read_bytes())
  for mark, offset in ((b'PK\x01\x02', 24), (b'PK\x03\x04', 22)):
    start = raw.rindex(mark) + offset
    raw[start : start + 4] = (10).to_bytes(4, 'little')
  path.write_bytes(raw)
  archive = archives.Archive(path, 'train2017')
  assert archive.read('1.jpg') == b'first'
  with pytest.raises(ValueError, match='2.jpg .*damaged'):
    archive.read('2.jpg')


def test_a_disk_that_fails_makes_no_member_bad(zips, monkeypatch):
  archive = archives.Archive(zips / 'train2017.zip', 'train2017')

  def fail(self, member):
    raise OSError(errno.EIO, os.strerror(errno.EIO))

  monkeypatch.setattr(zipfile.ZipFile, 'read', fail)
  with pytest.raises(OSError, match='Input/output error'):
    archive.read(f'{1:012d}.jpg')


def test_files_of_a_folder_have_a_state(tmp_path):
  (tmp_path / 'a').write_bytes(b'abc')
  folder = archives.Folder(pathlib.Path(tmp_path))
  size, _ = folder.state('a') or (0, 0)
  assert size == 3 and folder.state('b') is None and folder.state('a\0') is None


def test_what_is_prepared_is_used_for_what_it_was_prepared_from(coco, tmp_path, caplog):
  prepared = tmp_path / 'datasets'
  pipeline.prepare(_config(coco, prepared))
  for path in (coco, ''):  # the same again, and none given
    assert data.load(_config(path, prepared)).num_eval == 3
  with pytest.raises(FileNotFoundError, match='nowhere'):
    data.load(_config(tmp_path / 'nowhere', prepared))
  # Where COCO's own files are no more, and where those of its test split are not.
  alone, partly = prepared / 'coco/2017/1.1.0', tmp_path / 'partly'
  shutil.copytree(coco, partly, ignore=shutil.ignore_patterns('*test2017*'))
  for path, data_dir in ((alone, tmp_path / 'none'), (partly, prepared)):
    assert data.load(_config(path, data_dir)).num_eval == 3
  other = tmp_path / 'other'
  shutil.copytree(coco, other)
  file = other / 'annotations' / 'instances_val2017.json'
  file.write_text(file.read_text().replace('100.5', '99.5'))
  with pytest.raises(ValueError, match=r'annotations .*validation'):
    data.load(_config(other, prepared))
  # TFDS's own code does not keep what it was prepared from.
  metadata = prepared / 'coco/2017/1.1.0/metadata.json'
  content = json.loads(metadata.read_text())
  del content['annotations_sha256']
  metadata.write_text(json.dumps(content))
  assert data.load(_config(other, prepared)).num_eval == 3
  assert '1.1.0 does not say' in caplog.text and str(other) in caplog.text
