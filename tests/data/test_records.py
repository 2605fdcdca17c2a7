"""Images read from records: the recipe's pixels, and memory that is used again."""

import errno
import itertools
import os

import cv2
import jax
import numpy as np
import pytest
from etils import epath
from PIL import Image

from gfl_jax import data, errors
from gfl_jax.data import pixels, records
from tests.data import sets


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  folder = sets.write_folder(tmp_path_factory.mktemp('records') / 'photos', train=12)
  rng = np.random.default_rng(0)
  for path in (folder / 'images').iterdir():
    with Image.open(path) as image:
      size = image.size
    noise = rng.integers(0, 256, (size[1] // 4, size[0] // 4, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees, which annotations know nothing of
    Image.fromarray(noise).resize(size).save(path, quality=90, exif=exif)
  return folder


def _dataset(folder, **changes):
  return data.load(
    sets.config(
      name='coco_folder',
      path=str(folder),
      data_dir=str(folder.parent / 'datasets'),
      **(
        {'canvas': (100, 144), 'short_side': (100, 100), 'max_long_side': 144} | changes
      ),
    )
  )


def test_pixels_are_those_of_the_recipe(folder):
  """mmcv: imdecode, imrescale, imflip, impad."""
  seen = 0
  for batch in itertools.islice(_dataset(folder).train_batches(4, seed=0), 6):
    for i, image_id in enumerate(batch['image_ids']):
      encoded = np.fromfile(folder / f'images/{image_id}.jpg', np.uint8)
      image = cv2.imdecode(encoded, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
      height, width = batch['image_sizes'][i].tolist()
      image = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
      covered = batch['images'][i, :height, :width, ::-1]
      same = [(covered == x).all() for x in (image, cv2.flip(image, 1))]
      assert sum(same) == 1
      seen |= 1 << same.index(True)
      assert not batch['images'][i, height:].any()
      assert not batch['images'][i, :, width:].any()
  assert seen == 0b11  # some mirrored, some not


def test_a_batch_that_is_held_does_not_change(folder):
  dataset = _dataset(folder)
  kept, parts, on_device, copies = [], [], [], []
  for batch in itertools.islice(dataset.train_batches(2, seed=0), 20):
    copies.append(batch['images'].copy())
    kept.append(batch['images'] if len(kept) % 2 else None)
    parts.append(batch['images'][0, 3:, ::2])
    on_device.append(jax.device_put(batch['images']))
  for whole, part, array, copy in zip(kept, parts, on_device, copies, strict=True):
    assert whole is None or (whole == copy).all()
    np.testing.assert_array_equal(part, copy[0, 3:, ::2])
    np.testing.assert_array_equal(array, copy)


def test_memory_is_used_again_by_both_canvases(folder):
  batches = _dataset(folder).train_batches(2, seed=0)
  addresses, shapes = set(), set()
  for batch in itertools.islice(batches, 60):
    addresses.add(batch['images'].ctypes.data)
    shapes.add(batch['images'].shape)
  assert shapes == {(2, 100, 144, 3), (2, 144, 100, 3)}
  ahead = records.AHEAD + 2 * records.num_cores() // 2
  assert len(addresses) <= ahead + 3  # handed over, and about to be begun


@pytest.mark.parametrize('failures', [2, 3])
def test_storage_that_fails_for_a_moment_is_asked_again(folder, monkeypatch, failures):
  dataset = _dataset(folder)
  (wanted,) = itertools.islice(dataset.train_batches(4, seed=0), 1)
  kind, left = type(epath.Path('/')), itertools.count(1)
  opened = kind.open

  def open_later(path, *arguments):
    if next(left) <= failures:
      raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(path))
    return opened(path, *arguments)

  monkeypatch.setattr(records, '_PAUSE_SECONDS', 0.0)
  monkeypatch.setattr(records, 'num_cores', lambda: 1)  # one image after the other
  monkeypatch.setattr(kind, 'open', open_later)
  if failures == 3:
    with pytest.raises(ValueError, match='Stale file') as error:
      next(dataset.train_batches(4, seed=0))
    assert errors.is_transient(error.value)
    return
  batch = next(dataset.train_batches(4, seed=0))
  np.testing.assert_array_equal(batch['images'], wanted['images'])


def test_photographs_that_are_used_as_stored_are_said(folder, caplog):
  caplog.set_level('INFO', logger='gfl_jax')
  _dataset(folder)
  for index in folder.parent.glob('datasets/**/gfl_index_*'):
    index.unlink()
  _dataset(folder)
  assert ('train', 12) in [record.args for record in caplog.records]


def test_what_is_no_image_is_an_error():
  with pytest.raises(ValueError, match='decode'):
    pixels.decode(b'<html>')


def test_cores_are_counted_where_the_system_does_not_tell_which(monkeypatch):
  monkeypatch.delattr(os, 'sched_getaffinity')
  assert records.num_cores() == os.cpu_count()
