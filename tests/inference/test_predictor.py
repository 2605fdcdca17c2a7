"""Predictions of a run and of its exports, in the pixels of the images."""

import importlib
import json
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image

import gfl_jax
from gfl_jax.data.dataset import Dataset, Splits
from gfl_jax.evaluation import evaluator
from gfl_jax.evaluation.decode import Detections
from gfl_jax.inference import loading
from gfl_jax.inference.predictor import Predictor
from gfl_jax.models import build_detector
from tests.data import sets
from tests.inference import small_run

SIZES = [(64, 96), (80, 60), (48, 64), (300, 200), (70, 71)]


def pictures():
  rng = np.random.default_rng(1)
  return [rng.integers(0, 256, (*size, 3), np.uint8) for size in SIZES]


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  return small_run.write(tmp_path_factory.mktemp('run'))


@pytest.fixture(scope='module')
def detector(run):
  return gfl_jax.load(run)


@pytest.fixture(scope='module')
def found(detector):
  return detector.predict(pictures())


def same(actual, expected):
  assert len(actual) == len(expected)
  for a, e in zip(actual, expected, strict=True):
    assert a.names == e.names
    np.testing.assert_array_equal(a.classes, e.classes)
    for name in ('boxes', 'scores', 'edge_std'):
      np.testing.assert_allclose(getattr(a, name), getattr(e, name), 1e-4, 1e-4)


def test_boxes_are_those_of_evaluation(run, found, tmp_path):
  trained = loading.load_run(run)
  split = sets.annotations(SIZES, [[(8, 8, 40, 40)]] * len(SIZES))
  part = split, sets.memory_pixels(pictures())
  splits = Splits(small_run.NAMES, small_run.IDS, part, part)
  dataset = Dataset(trained.config.data, splits)
  evaluator.evaluate(
    jax.jit(evaluator.make_predict(build_detector(trained.config), trained.config)),
    trained.variables,
    dataset.eval_batches(1),
    dataset.ground_truth(),
    config=trained.config,
    folder=tmp_path,
    step=1,
  )
  evaluated = json.loads((tmp_path / 'detections.json').read_text())
  assert len(evaluated) == sum(map(len, found)) > 20
  for i, detections in enumerate(found):
    mine = [one for one in evaluated if one['image_id'] == i + 1]
    boxes = np.array([one['bbox'] for one in mine])
    boxes[:, 2:] += boxes[:, :2]
    np.testing.assert_allclose(detections.boxes, boxes, atol=0.011)
    scores = [one['score'] for one in mine]
    np.testing.assert_allclose(detections.scores, scores, atol=2e-6)
    classes = [small_run.IDS[c] for c in detections.classes]
    assert classes == [one['category_id'] for one in mine]
    assert detections.names == tuple(small_run.NAMES[c] for c in detections.classes)


def test_results_lie_in_the_image(found):
  for (height, width), detections in zip(SIZES, found, strict=True):
    assert len(detections) == len(detections.scores) > 0
    assert (np.diff(detections.scores) <= 0).all() and detections.scores.min() > 0
    assert (detections.boxes >= 0).all()
    assert (detections.boxes <= np.array([width, height] * 2) + 1e-3).all()
    assert detections.boxes.dtype == detections.edge_std.dtype == np.float32
    assert (detections.edge_std > 0).all()


def test_a_batch_finds_what_single_images_find(detector, found):
  landscape = [i for i, (height, width) in enumerate(SIZES) if height < width]
  images = [pictures()[i] for i in landscape]
  same(detector.predict(images, batch_size=2), [found[i] for i in landscape])


def test_arrays_pillow_images_and_files_are_the_same(detector, found, tmp_path):
  first, turned, third, *_ = pictures()
  exif = Image.Exif()
  exif[0x0112] = 6  # stored lying on its side
  lying = Image.fromarray(np.ascontiguousarray(np.rot90(turned)))
  lying.save(tmp_path / 'turned.png', exif=exif)
  forms = [Image.fromarray(first), tmp_path / 'turned.png', third]
  same(detector.predict(forms), found[:3])


def test_the_least_score(detector, found):
  least = float(found[0].scores[2])
  (kept,) = detector.predict(pictures()[:1], min_score=least)
  assert 3 <= len(kept) < len(found[0]) and kept.scores.min() == least
  assert len(kept.names) == len(kept.boxes) == len(kept.edge_std) == len(kept)


def test_no_images_are_no_results(detector):
  assert detector.predict([]) == []


def test_the_smallest_and_the_longest_image(detector):
  sides = [(1, 1), (200, 10_000), (10_000, 200)]
  found = detector.predict([np.full((*side, 3), 90, np.uint8) for side in sides])
  for (height, width), detections in zip(sides, found, strict=True):
    assert np.isfinite(detections.boxes).all()
    assert (detections.boxes <= np.array([width, height] * 2) * (1 + 1e-6)).all()


def recorder(batches):
  """A program that finds the height of each image, in its first pixel."""

  def program(batch):
    batches.append(batch)
    size = len(batch['images'])
    scores = batch['images'][:, 0, 0, :1] / np.float32(255)
    boxes = np.zeros((size, 1, 4), np.float32)
    zeros = np.zeros((size, 1), np.int32)
    return Detections(boxes, scores, zeros, batch['image_sizes'][:, :1] > 0, boxes)

  return program


def test_batches_have_one_shape_for_each_canvas_and_results_their_order():
  batches = []
  fake = Predictor(recorder(batches), small_run.config(), small_run.NAMES, (1, 2, 3))
  marks = np.arange(1, 8) * 30
  images = [
    np.full((20, 30, 3) if i % 3 else (30, 20, 3), mark, np.uint8)
    for i, mark in enumerate(marks)
  ]
  found = fake.predict(images, batch_size=2)
  np.testing.assert_allclose([f.scores for f in found], marks[:, None] / 255, atol=1e-6)
  shapes = [batch['images'].shape for batch in batches]
  assert sorted(shapes) == [(2, 64, 96, 3)] * 2 + [(2, 96, 64, 3)] * 2
  filled = [(batch['image_sizes'] > 0).all(1).sum() for batch in batches]
  assert sorted(filled) == [1, 2, 2, 2]
  padding = next(b for b, n in zip(batches, filled, strict=True) if n == 1)
  np.testing.assert_array_equal(padding['scales'][1], 1)
  assert not padding['images'][1].any()


def test_images_are_read_as_they_are_needed():
  batches, read = [], []

  def images():
    for i in range(50):
      read.append(i)
      yield np.full((20, 30, 3), 9, np.uint8)

  fake = Predictor(recorder(batches), small_run.config(), small_run.NAMES, (1, 2, 3))
  next(stream := fake.stream(images(), batch_size=2, failed=pytest.fail))
  stream.close()
  assert len(batches) == 1 and len(read) < 10


def test_a_generator_gives_what_a_list_gives():
  images = [np.full((20, 30, 3), mark, np.uint8) for mark in (90, 30, 60)]
  found = FAKE.predict(image for image in images)
  np.testing.assert_allclose([f.scores[0] * 255 for f in found], [90, 30, 60], 1e-6)
  assert FAKE.predict(iter([])) == []


FAKE = Predictor(recorder([]), small_run.config(), small_run.NAMES, (1, 2, 3))


@pytest.mark.parametrize(
  'images, options, error, says',
  [
    (pictures()[0], {}, TypeError, r'predict\(\[image\]\)'),
    (Image.fromarray(pictures()[0]), {}, TypeError, r'predict\(\[image\]\)'),
    ('one.png', {}, TypeError, r'predict\(\[image\]\)'),
    ({'a': pictures()[0]}, {}, TypeError, 'a list of images, not a dict'),
    ({'one.png'}, {}, TypeError, 'a list of images, not a set'),
    ([pictures()[0], pictures()[0] / 255], {}, ValueError, r'images\[1\]: .*float64'),
    ([pictures()[0], None], {}, TypeError, r'images\[1\]: .*NoneType'),
    (['none.png'], {}, FileNotFoundError, r'images\[0\]: .*none.png'),
    (pictures()[:1], {'batch_size': 0}, ValueError, 'batch_size=0 must be'),
    (pictures()[:1], {'min_score': 1.5}, ValueError, 'min_score=1.5 must be'),
  ],
)
def test_bad_input_is_named(images, options, error, says):
  with pytest.raises(error, match=says):
    FAKE.predict(images, **options)


@pytest.mark.parametrize('format', ['params', 'stablehlo', 'onnx'])
def test_an_export_finds_what_its_run_finds(run, found, format, tmp_path):
  if format == 'onnx':
    pytest.importorskip('onnx')
    pytest.importorskip('onnxruntime')
  module = importlib.import_module(f'gfl_jax.export.{format}')
  module.write(loading.load_run(run), tmp_path)
  exported = gfl_jax.load(tmp_path)
  assert exported.class_names == small_run.NAMES
  assert exported.category_ids == small_run.IDS
  assert exported.config.to_dict() == loading.load_run(run).config.to_dict()
  same(exported.predict(pictures()), found)


def test_parameters_alone_are_enough(run, found, tmp_path):
  from gfl_jax.export import params

  params.write(loading.load_run(run), tmp_path)
  (file,) = tmp_path.glob('*.safetensors')
  same(gfl_jax.load(file).predict(pictures()[:1]), found[:1])
  moved = file.rename(tmp_path.with_suffix('.safetensors'))
  same(gfl_jax.load(moved).predict(pictures()[:1]), found[:1])
  with pytest.raises(ValueError, match="step='best'"):
    gfl_jax.load(moved, step='best')


def test_the_root_is_what_is_read(run, tmp_path):
  lone = tmp_path / 'lone.safetensors'
  lone.touch()
  assert loading.root_of(lone) == lone
  assert loading.root_of(run) == run
  (tmp_path / 'manifest.json').touch()
  assert loading.root_of(lone) == loading.root_of(tmp_path) == tmp_path


def test_a_step_of_a_run_can_be_chosen(run):
  assert gfl_jax.load(run, step=1, weights='raw').class_names == small_run.NAMES
  with pytest.raises(ValueError, match='step=7'):
    gfl_jax.load(run, step=7)


def test_what_is_not_a_detector_is_named(run, tmp_path):
  with pytest.raises(FileNotFoundError, match='nowhere does not exist'):
    gfl_jax.load(tmp_path / 'nowhere')
  with pytest.raises(FileNotFoundError, match='neither the folder of a run'):
    gfl_jax.load(tmp_path)
  with pytest.raises(FileNotFoundError, match='config.json is no file of an export'):
    gfl_jax.load(run / 'config.json')


def test_the_package_itself_stays_light():
  code = (
    'import sys, gfl_jax\nassert not {"jax", "numpy", "PIL"} & set(sys.modules)\n'
    'gfl_jax.load\nassert not {"tensorflow", "matplotlib"} & set(sys.modules)'
  )
  subprocess.run([sys.executable, '-c', code], check=True)
  with pytest.raises(AttributeError, match="no attribute 'laod'"):
    gfl_jax.laod  # noqa: B018
