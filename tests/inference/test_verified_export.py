import json
import pathlib
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image

import gfl_jax
from gfl_jax.data import transforms
from gfl_jax.data.memory import MemoryDataset
from gfl_jax.evaluation.decode import Detections
from gfl_jax.export import manifest, params, programs, stablehlo
from gfl_jax.inference import loading, verification, verified_export
from tests.data import sets
from tests.inference import small_run

SCRIPT = pathlib.Path(__file__).parents[2] / 'scripts' / 'export.py'
SIZES = [(48, 64), (200, 90), (64, 96), (40, 40), (90, 60)]


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  return small_run.write(tmp_path_factory.mktemp('parent') / 'run')


@pytest.fixture(scope='module')
def trained(run):
  return loading.load_run(run)


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
  folder, rng = tmp_path_factory.mktemp('photos'), np.random.default_rng(0)
  for number, size in enumerate(SIZES):
    pixels = rng.integers(0, 256, (*size, 3), np.uint8)
    Image.fromarray(pixels).save(folder / f'{number}.png')
  return folder


@pytest.fixture(scope='module')
def exported(trained, photos, tmp_path_factory):
  out = tmp_path_factory.mktemp('out') / 'below' / 'export'
  return out, verified_export.write(trained, 'stablehlo', out, images=[str(photos)])


def test_a_program_is_compared_on_every_canvas_before_it_is_there(exported):
  out, result = exported
  assert result['images'] == {'64x96': 5, '96x64': 5}
  assert min(result['detections'].values()) > 50
  assert max(result['largest_differences'].values()) < 1e-4
  assert manifest.read(out).verification == result
  assert [path.name for path in out.parent.iterdir()] == ['export']


def test_an_export_is_replaced_and_nothing_else(exported, trained, tmp_path):
  out, _ = exported
  old = tmp_path / 'old'
  old.mkdir()
  for path in out.iterdir():
    (old / path.name).write_bytes(path.read_bytes())
  result = verified_export.write(trained, 'params', old)
  assert result == {'arrays_equal_bit_for_bit': len(jax.tree.leaves(trained.variables))}
  assert {path.name for path in old.iterdir()} == {manifest.NAME, params.FILE}
  assert gfl_jax.load(old).class_names == small_run.NAMES

  (old / 'notes.txt').write_text('mine')
  with pytest.raises(ValueError, match=r'holds something else \(notes\.txt\)'):
    verified_export.write(trained, 'params', old)
  with pytest.raises(ValueError, match='is a file'):
    verified_export.write(trained, 'params', old / 'notes.txt')
  assert (old / 'notes.txt').read_text() == 'mine'
  (tmp_path / 'link').symlink_to(old)
  with pytest.raises(ValueError, match=f'is a link to {old}'):
    verified_export.write(trained, 'params', tmp_path / 'link')


def test_one_that_differs_is_removed(exported, trained, photos, tmp_path, monkeypatch):
  def moved(folder, described):
    program = programs.jitted(trained)

    def wrong(batch):
      found = program(batch)
      boxes = found.boxes + np.float32(0.1)
      return found._replace(boxes=boxes)

    return wrong

  copy = lambda trained, folder: shutil.copytree(
    exported[0], folder, dirs_exist_ok=True
  )
  monkeypatch.setattr(stablehlo, 'write', copy)
  monkeypatch.setattr(stablehlo, 'load', moved)
  with pytest.raises(ValueError, match=r"does not find what the run finds.*'boxes'"):
    verified_export.write(trained, 'stablehlo', tmp_path / 'out', images=[str(photos)])
  assert list(tmp_path.iterdir()) == []


def test_the_evaluation_set_of_the_run_is_taken_where_it_is(trained, tmp_path):
  rng, sizes = np.random.default_rng(0), np.array(SIZES)
  annotations = sets.annotations(SIZES, [[(1, 1, 30, 30)]] * len(SIZES))
  config = trained.config.copy_and_resolve_references()
  config.data.path = str(tmp_path / 'x.npz')
  stored = [
    rng.integers(0, 256, (*size, 3), np.uint8)
    for size in transforms.resized_sizes(sizes, 64, 96)
  ]
  split = annotations, sets.memory_pixels(stored)
  MemoryDataset(small_run.NAMES, small_run.IDS, split, split).save(config.data.path)
  placed = verification.sample_images(config, [], leave_out=tmp_path)
  assert len(placed) == 4
  for image in placed:
    height, width = image.size
    assert any(
      np.array_equal(image.canvas[:height, :width], pixels) for pixels in stored
    )
  config.data.path = str(tmp_path / 'gone.npz')
  with pytest.raises(ValueError, match=r'gone\.npz.*give --images'):
    verification.sample_images(config, [], leave_out=tmp_path)


def test_one_photograph_is_enough_and_none_an_error(trained, photos, tmp_path):
  sample = lambda images: verification.sample_images(
    trained.config, images, leave_out=tmp_path
  )
  placed = sample([str(photos / '0.png')])
  batches = list(verification.batches_on_each_canvas(trained.config, placed))
  assert [batch['images'].shape[1:3] for batch in batches] == [(64, 96), (96, 64)]
  for batch in batches:
    assert (batch['image_sizes'].min(-1) > 0).tolist() == [True, False, False, False]
  (tmp_path / 'text.png').write_text('no image')
  with pytest.raises(ValueError, match='--images has no image that can be read'):
    sample([str(tmp_path / 'text.png')])


def test_formats_that_do_not_exist_are_named(trained, tmp_path):
  with pytest.raises(ValueError, match=r"format='tflite' is not one of \('params'"):
    verified_export.write(trained, 'tflite', tmp_path / 'x')


def test_the_script_says_what_it_compared(run, tmp_path):
  out = tmp_path / 'mine'
  good = script(f'--run={run}', '--format=params', f'--out={out}', '--weights=ema')
  assert good.returncode == 0, good.stderr
  assert str(out) in good.stdout and 'arrays equal bit for bit' in good.stdout
  origin = json.loads((out / manifest.NAME).read_text())['origin']
  assert origin == {'run': str(run), 'step': 1, 'weights': 'ema'}


@pytest.mark.parametrize(
  ('arguments', 'says'),
  [
    (['--format=tflite'], 'tflite'),
    (['--format=params', '--step=9'], 'step=9'),
    (['--format=stablehlo'], 'give --images=FOLDER'),
  ],
)
def test_what_is_wrong_is_one_line(run, tmp_path, arguments, says):
  out = tmp_path / 'x'
  bad = script(f'--run={run}', f'--out={out}', *arguments)
  assert bad.returncode == 1 and says in bad.stderr
  assert 'Traceback' not in bad.stderr and not out.exists()


class TestComparison:
  BATCH = {
    'images': np.zeros((1, 64, 96, 3), np.uint8),
    'image_sizes': np.array([[50, 96]]),
    'scales': np.ones((1, 2)),
  }

  def found(self, scores, *, boxes=(0.0, 0.0, 9.6, 9.6), classes=0):
    valid = np.array([scores]) > 0
    scores, size = np.array([scores], np.float32), (1, len(scores))
    rows = np.broadcast_to(np.asarray(boxes, np.float32), (*size, 4)) * valid[..., None]
    classes = np.broadcast_to(np.asarray(classes), size)
    return Detections(rows, scores, classes, valid, rows / 10)

  def compare(self, expected, actual):
    return verification.comparison([(self.BATCH, expected, actual)], 0.05)

  def test_differences_are_the_largest_in_shares_of_the_longer_side(self):
    moved = (0.0, 0.0, 9.6, 9.6 + 96 * 5e-5)
    result = self.compare(
      self.found([0.9, 0.0]), self.found([0.9 + 2e-5, 0.0], boxes=moved)
    )
    largest = result['largest_differences']
    np.testing.assert_allclose(largest['boxes'], 5e-5, rtol=0.02)
    np.testing.assert_allclose(largest['scores'], 2e-5, rtol=0.02)
    assert result['detections'] == {'64x96': 1} and result['images'] == {'64x96': 1}

  def test_the_order_of_equal_scores_does_not_count(self):
    pair = [(0, 0, 9, 9), (5, 5, 20, 20)]
    expected = self.found([0.5, 0.5, 0], boxes=[*pair, (0, 0, 0, 0)])
    actual = self.found([0.5, 0.5, 0], boxes=[*pair[::-1], (0, 0, 0, 0)])
    assert self.compare(expected, actual)['largest_differences']['boxes'] == 0

  def test_what_lies_at_the_threshold_or_in_the_last_slot_may_be_missing(self):
    self.compare(self.found([0.9, 0.05 + 5e-5, 0]), self.found([0.9, 0, 0]))
    last = [(0, 0, 9, 9), (5, 5, 20, 20)]
    self.compare(
      self.found([0.9, 0.5], boxes=last),
      self.found([0.9, 0.5], boxes=[last[0], (50, 5, 70, 20)]),
    )

  @pytest.mark.parametrize(
    ('scores', 'changes'),
    [
      ([0.9, 0.8, 0], {'boxes': (0, 0, 9, 9.7)}),
      ([0.9, 0.79, 0], {}),
      ([0.9, 0.8, 0], {'classes': 1}),
      ([0.9, 0, 0], {}),
      ([0.9, 0.8, 0], {'boxes': (0, 0, 9, np.nan)}),
      ([0, 0, 0], {}),
    ],
    ids=['moved', 'score', 'class', 'missing', 'nan', 'nothing'],
  )
  def test_what_differs_is_an_error_in_both_directions(self, scores, changes):
    expected = self.found([0.9, 0.8, 0])
    actual = self.found(scores, **changes)
    for pair in ((expected, actual), (actual, expected)):
      with pytest.raises(ValueError, match='does not find what the run finds'):
        self.compare(*pair)

  def test_nothing_found_is_nothing_compared(self):
    empty = self.found([0, 0])
    with pytest.raises(ValueError, match='finds nothing in the images on canvas 64x96'):
      self.compare(empty, empty)


def script(*arguments):
  return subprocess.run(
    [sys.executable, SCRIPT, *arguments], capture_output=True, text=True
  )


def test_of_a_folder_some_images_are_taken_and_damaged_ones_left_out(
  trained, tmp_path, caplog, monkeypatch
):
  monkeypatch.setattr(verification, '_MAX_FILES', 6)
  for number in range(30):
    Image.new('L', (96, 64), number).save(tmp_path / f'{number:02}.png')
  (tmp_path / '29.png').write_bytes(b'no image')
  with caplog.at_level('WARNING'):
    placed = verification.sample_images(
      trained.config, [str(tmp_path)], leave_out=tmp_path / 'out'
    )
  assert [image.canvas[0, 0, 0] for image in placed] == [0, 6, 12, 17, 23]
  assert '29.png' in caplog.text
