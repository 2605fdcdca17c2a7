"""Pixels in memory, the file, prefetching, and life without TensorFlow."""

import subprocess
import sys
import threading

import numpy as np
import pytest

from gfl_jax import data
from gfl_jax.data import memory
from gfl_jax.data.memory import MemoryDataset
from gfl_jax.data.transforms import Plan
from gfl_jax.errors import StorageError
from tests.data import sets


def _rectangle_set(box=(40, 20, 80, 60), size=(96, 128)):
  split = sets.annotations([size] * 4, [[box]] * 4)
  pixels = sets.memory_pixels([sets.rectangle_image(size, box)] * 4)
  return MemoryDataset(('round', 'square'), (7, 9), (split, pixels), (split, pixels))


def _bright_box(image):
  """Sides of the part brighter than half; [h, w, 3] -> xyxy."""
  rows, columns = (np.flatnonzero((image[..., 0] > 127).any(a)) for a in (1, 0))
  return [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]


@pytest.mark.parametrize('zoom', [(1.0, 1.0), (0.6, 0.9), (1.1, 1.6)])
@pytest.mark.parametrize('flip', [0.0, 1.0])
@pytest.mark.parametrize('short_side', [(96, 96), (40, 80)])
def test_boxes_lie_on_their_pixels(zoom, flip, short_side):
  config = sets.config(
    canvas=(96, 128), short_side=short_side, max_long_side=128, zoom=zoom, flip=flip
  )
  batches = _rectangle_set().dataset(config).train_batches(4, seed=0)
  seen = 0
  for _ in range(6):
    batch = next(batches)
    for image, size, box in zip(
      batch['images'], batch['image_sizes'], batch['boxes'][:, 0], strict=True
    ):
      assert not image[size[0] :].any() and not image[:, size[1] :].any()
      if box.any():
        np.testing.assert_allclose(box, _bright_box(image), atol=0.76)
        seen += 1
  assert seen > 12


def test_stored_pixels_are_only_copied():
  config = sets.config(canvas=(96, 128), short_side=(96, 96), max_long_side=128)
  box = (40, 20, 80, 60)
  dataset = _rectangle_set(box).dataset(config)
  batch = next(dataset.train_batches(4, seed=0))
  image = sets.rectangle_image((96, 128), box)
  mirrored = batch['boxes'][:, 0, 0] != 40
  assert 0 < mirrored.sum() < 4
  for got, mirror in zip(batch['images'], mirrored, strict=True):
    np.testing.assert_array_equal(got, image[:, ::-1] if mirror else image)


@pytest.mark.parametrize('mirrored', [False, True])
def test_a_crop_of_stored_pixels_is_exact(mirrored):
  image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
  one = lambda *values: np.array([values])
  plan = Plan(np.array([0]), one(20, 30), one(3, 4), np.array([mirrored]), (12, 16))
  (batch,) = sets.memory_pixels([image]).images(iter([plan]))
  part = image[3:15, 4:20]
  np.testing.assert_array_equal(batch[0], np.flip(part, 1) if mirrored else part)


def test_a_file_gives_the_same_batches(tmp_path):
  whole, path = _rectangle_set(), tmp_path / 'new' / 'set.npz'
  whole.save(path)
  assert [p.name for p in path.parent.iterdir()] == ['set.npz']
  config = sets.config(canvas=(96, 128), max_long_side=128, path=str(path))
  first, second = whole.dataset(config), data.load(config)
  assert second.class_names == ('round', 'square')
  assert second.category_ids == (7, 9)
  assert second.ground_truth() == first.ground_truth()
  a, b = (next(d.train_batches(4, seed=0)) for d in (first, second))
  for key in a:
    np.testing.assert_array_equal(a[key], b[key])


def test_an_interrupted_save_keeps_the_old_file(tmp_path, monkeypatch):
  path = tmp_path / 'set.npz'
  _rectangle_set().save(path)
  before = path.read_bytes()

  def full_disk(file, **arrays):
    file.write(b'half')
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(np, 'savez', full_disk)
  with pytest.raises(StorageError, match='No space'):
    _rectangle_set().save(path)
  assert path.read_bytes() == before
  assert [p.name for p in tmp_path.iterdir()] == ['set.npz']


def test_files_that_are_not_ours_are_refused(tmp_path):
  with pytest.raises(FileNotFoundError, match='nothing.npz'):
    memory.load(tmp_path / 'nothing.npz')
  text = tmp_path / 'text.npz'
  text.write_text('not an archive')
  foreign = tmp_path / 'foreign.npz'
  np.savez(foreign, x=np.zeros(3))
  for path in (text, foreign):
    with pytest.raises(ValueError, match=f'{path.name} .*prepare_data'):
      memory.load(path)
  newer = tmp_path / 'newer.npz'
  np.savez(newer, format=memory.FORMAT, version=99)
  with pytest.raises(ValueError, match='newer.npz .*99.* 2:'):
    memory.load(newer)


def test_damaged_files_are_refused(tmp_path):
  path = tmp_path / 'set.npz'
  _rectangle_set().save(path)
  content = path.read_bytes()
  path.write_bytes(content[: len(content) // 2])
  with pytest.raises(ValueError, match='damaged'):
    memory.load(path)
  flipped = bytearray(content)
  flipped[len(content) // 4] ^= 1  # within the pixels: the archive's checksum tells
  path.write_bytes(flipped)
  with pytest.raises(ValueError, match='damaged'):
    memory.load(path)


def test_images_stored_too_small_are_refused():
  config = sets.config(canvas=(200, 200), short_side=(120, 120), max_long_side=200)
  with pytest.raises(ValueError, match=r'stored with .*\(96, 128\).*prepare_data'):
    _rectangle_set().dataset(config)


def test_unknown_names_are_refused():
  with pytest.raises(ValueError, match="'cocoo'.*coco_folder"):
    data.load(sets.config(name='cocoo'))


def test_files_need_no_tensorflow(tmp_path):
  path = tmp_path / 'set.npz'
  _rectangle_set().save(path)
  program = f"""
import sys
for name in ('tensorflow', 'tensorflow_datasets'):
  sys.modules[name] = None  # importing it raises ImportError
from gfl_jax import data
from tests.data import sets
config = sets.config(canvas=(96, 128), max_long_side=128, path={str(path)!r})
dataset = data.load(config)
next(data.prefetch(dataset.train_batches(2, seed=0)))
print(len(list(dataset.eval_batches(4))), 'batch')
"""
  done = subprocess.run(
    [sys.executable, '-c', program], capture_output=True, text=True, check=False
  )
  assert done.stdout == '1 batch\n', done.stderr


def test_prefetch_keeps_the_order_and_ends():
  assert list(data.prefetch(iter(range(20)))) == list(range(20))


def test_prefetch_hands_on_errors_after_the_items_before():
  def broken():
    yield 1
    raise KeyError('lost')

  items = data.prefetch(broken())
  assert next(items) == 1
  with pytest.raises(KeyError, match='lost'):
    next(items)


def test_prefetch_runs_only_a_little_ahead_and_stops_when_closed():
  taken = []

  def endless():
    while True:
      taken.append(len(taken))
      yield taken[-1]

  before = threading.active_count()
  items = data.prefetch(endless(), size=2)
  assert next(items) == 0
  items.close()
  assert threading.active_count() == before
  assert len(taken) <= 4
