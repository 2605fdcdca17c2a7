"""TFDS records, streamed and cached: the same batches, from any step."""

import itertools
import json
import pathlib

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.object_detection import coco as tfds_coco

from gfl_jax import data, errors
from gfl_jax.data import coco_json, scenes
from tests.data import sets


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return sets.write_folder(tmp_path_factory.mktemp('coco') / 'photos', train=7)


def _config(folder, **changes):
  base = dict(
    name='coco_folder',
    path=str(folder),
    data_dir=str(folder.parent / 'datasets'),
    canvas=(64, 96),
    short_side=(64, 64),
    max_long_side=96,
  )
  return sets.config(**(base | changes))


def _take(batches, count):
  return list(itertools.islice(batches, count))


@pytest.mark.parametrize(
  'changes',
  [{}, {'zoom': (0.6, 1.6)}, {'short_side': (32, 64), 'canvas': (96, 96)}],
  ids=['plain', 'zoom', 'multi-scale'],
)
def test_streamed_and_cached_batches_agree(folder, changes):
  streams, caches = (
    _take(data.load(_config(folder, cache=c, **changes)).train_batches(3, seed=5), 7)
    for c in (False, True)
  )
  for streamed, cached in zip(streams, caches, strict=True):
    for key in streamed:
      if key != 'images':
        np.testing.assert_array_equal(streamed[key], cached[key], err_msg=key)
    difference = streamed['images'].astype(float) - cached['images']
    if changes:  # what is cached was resized once before
      assert np.abs(difference).mean() < 3
    else:
      assert not difference.any()


@pytest.mark.parametrize('cache', [False, True])
def test_any_step_can_be_the_first(folder, cache):
  dataset = data.load(_config(folder, cache=cache, zoom=(0.6, 1.6)))
  straight = _take(dataset.train_batches(3, seed=1), 6)
  resumed = _take(dataset.train_batches(3, seed=1, start_step=4), 2)
  for a, b in zip(straight[4:], resumed, strict=True):
    for key in a:
      np.testing.assert_array_equal(a[key], b[key], err_msg=key)


def test_boxes_lie_on_their_pixels(folder):
  dataset = data.load(_config(folder, zoom=(0.6, 1.6)))
  seen = 0
  for batch in _take(dataset.train_batches(4, seed=0), 10):
    for image, box in zip(batch['images'], batch['boxes'][:, 0], strict=True):
      bright = image[..., 0] > 127
      rows, columns = (np.flatnonzero(bright.any(axis)) for axis in (1, 0))
      if box.any():
        found = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
        np.testing.assert_allclose(box, found, atol=1.1)
        seen += 1
  assert seen > 25


def test_evaluation_pads_each_orientation(folder):
  dataset = data.load(_config(folder))
  assert dataset.canvases == ((64, 96), (96, 64))
  batches = list(dataset.eval_batches(2))
  ids = np.concatenate([b['image_ids'] for b in batches])
  assert sorted(ids[ids >= 0]) == [8, 9, 10]
  for batch in batches:
    padding = batch['image_ids'] < 0
    assert not batch['images'][padding].any()
    assert batch['images'][~padding].any(axis=(1, 2, 3)).all()


def test_the_index_is_kept_and_made_again_if_damaged(folder):
  config = _config(folder)
  before = data.load(config).ground_truth()
  paths = list((folder.parent / 'datasets').glob('**/gfl_index_*.npz'))
  assert len(paths) == 2
  for path in paths:
    path.write_bytes(path.read_bytes()[:100])
  assert data.load(config).ground_truth() == before


def test_an_index_that_cannot_be_stored_is_warned_of(folder, monkeypatch, caplog):
  config = _config(folder)
  data.load(config)
  for path in (folder.parent / 'datasets').glob('**/gfl_index_*.npz'):
    path.unlink()

  def full_disk(file, **arrays):
    raise OSError(28, 'No space left on device')

  with monkeypatch.context() as patch:
    patch.setattr(np, 'savez', full_disk)
    data.load(config)
  assert [record.name for record in caplog.records] == ['gfl_jax.data.index'] * 2
  assert 'index' in caplog.text and 'No space left' in caplog.text
  assert not list((folder.parent / 'datasets').glob('**/*gfl_index_*'))


def test_a_damaged_record_is_an_error_with_its_images(tmp_path):
  folder = sets.write_folder(tmp_path / 'photos')
  config = _config(folder)
  dataset = data.load(config)
  (path,) = (tmp_path / 'datasets').glob('**/coco_folder-validation.tfrecord-*')
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 1
  path.write_bytes(content)
  with pytest.raises(ValueError, match=rf'image \d+ in {path.parent} .*bytes'):
    list(dataset.eval_batches(2))


def test_the_file_of_a_whole_set_gives_the_same_batches(folder, tmp_path):
  """What scripts/prepare_data.py writes."""
  from gfl_jax.data import pipeline

  config, path = _config(folder), tmp_path / 'set.npz'
  pipeline.load_in_memory(config).save(path)
  other = data.load(_config(folder, name='file', path=str(path)))
  first, second = data.load(config), other
  assert first.counters == second.counters
  assert first.ground_truth() == second.ground_truth()
  a, b = (next(d.train_batches(3, seed=0)) for d in (first, second))
  for key in a:
    np.testing.assert_array_equal(a[key], b[key], err_msg=key)


def test_a_cache_larger_than_the_memory_is_refused(folder, monkeypatch):
  from gfl_jax.data import pipeline

  monkeypatch.setattr(pipeline, 'MAX_MEMORY_SHARE', 1e-9)
  with pytest.raises(ValueError, match='GiB .*config.data.cache=False'):
    data.load(_config(folder, cache=True))


def test_decoding_into_memory_says_how_much_it_takes(folder, caplog):
  caplog.set_level('INFO', 'gfl_jax')
  dataset = data.load(_config(folder, cache=True))
  count = dataset.num_train + dataset.num_eval
  assert (count, 0.0) in [
    (r.args[0], round(r.args[1], 2)) for r in caplog.records if r.args
  ]


def test_coco_2017_cannot_be_made_of_nothing(tmp_path):
  with pytest.raises(FileNotFoundError, match='coco/2017.* config.data.path'):
    data.load(sets.config(name='coco/2017', data_dir=str(tmp_path)))


def test_coco_2017_as_tfds_prepares_it(tmp_path):
  """The official builder's own code writes two splits of two images; we read them."""
  coco_ids = coco_json.COCO_CATEGORY_IDS
  categories = [{'id': i, 'name': f'class {i}'} for i in coco_ids]
  for name in ('train2017', 'val2017'):
    (tmp_path / name).mkdir()
    images = []
    for number in (1, 2):
      Image.new('RGB', (80, 60)).save(tmp_path / name / f'{number}.jpg')
      file = {'id': number, 'file_name': f'{number}.jpg', 'width': 80, 'height': 60}
      images.append(file)
    boxes = [  # image 1 alone has boxes: of class 79 (id 90), and a crowd of id 13
      {'id': 7, 'bbox': [10, 20, 30, 25.5], 'category_id': 90, 'iscrowd': 0},
      {'id': 8, 'bbox': [0, 0, 80, 60], 'category_id': 13, 'iscrowd': 1},
    ]
    annotations = [b | {'image_id': 1, 'area': 100.0} for b in boxes]
    (tmp_path / 'annotations').mkdir(exist_ok=True)
    (tmp_path / 'annotations' / f'instances_{name}.json').write_text(
      json.dumps(
        {'images': images, 'annotations': annotations, 'categories': categories}
      )
    )

  with tfds.core.registered.skip_registration():

    class Coco(tfds_coco.Coco):
      def _split_generators(self, dl_manager):
        return {
          split: self._generate_examples(
            image_dir=str(tmp_path),
            annotation_dir=str(tmp_path),
            split_name=name,
            annotation_type=tfds_coco.AnnotationType.BBOXES,
            panoptic_dir=None,
          )
          for split, name in (('train', 'train2017'), ('validation', 'val2017'))
        }

  data_dir = str(tmp_path / 'datasets')
  Coco(config='2017', data_dir=data_dir).download_and_prepare()

  found = data.load(sets.config(name='coco/2017', data_dir=data_dir))
  assert (found.num_train, found.num_eval) == (1, 2)
  assert found.category_ids == coco_ids and len(found.class_names) == 80
  batch = next(found.eval_batches(2))
  first = batch['image_ids'].tolist().index(1)
  assert batch['valid'].sum(axis=1).tolist() == [[1, 0], [0, 1]][first]
  assert batch['labels'][first, 0] == 79
  scale = np.tile(batch['scales'][first], 2)
  np.testing.assert_allclose(
    batch['boxes'][first, 0] / scale, [10, 20, 40, 45.5], atol=1e-4
  )
  truth = found.ground_truth()
  assert sorted(a['category_id'] for a in truth['annotations']) == [13, 90]
  assert sum(a['iscrowd'] for a in truth['annotations']) == 1


def test_names_and_ids_of_coco_2017_are_its_own():
  file = pathlib.Path(__file__).parents[1] / 'golden/cocoeval100/instances_gt.json'
  categories = json.loads(file.read_text())['categories']
  assert coco_json.COCO_NAMES == tuple(c['name'] for c in categories)
  assert coco_json.COCO_CATEGORY_IDS == tuple(c['id'] for c in categories)


def test_scenes_are_drawn_once_and_know_their_sides(tmp_path):
  config = sets.config(
    name='ambiguous_shapes',
    data_dir=str(tmp_path),
    canvas=(128, 128),
    short_side=(128, 128),
    max_long_side=128,
    max_boxes=6,
  )
  dataset = data.load(config)
  assert (dataset.num_train, dataset.num_eval) == (6, 3)
  assert dataset.class_names == scenes.CLASS_NAMES
  truth = dataset.ground_truth()
  scene = scenes.draw_scene((0, 1, 0))
  found = [a for a in truth['annotations'] if a['image_id'] == 7]
  sigma = [a['edge_sigma'] for a in found]
  np.testing.assert_allclose(sigma, scene.edge_sigma, rtol=1e-6)
  kinds = [[scenes.EDGE_KINDS.index(k) for k in a['edge_kind']] for a in found]
  np.testing.assert_array_equal(kinds, scene.edge_kind)
  np.testing.assert_allclose(
    [a['bbox'] for a in found],
    np.concatenate([scene.boxes[:, :2], scene.boxes[:, 2:] - scene.boxes[:, :2]], 1),
    atol=1e-4,
  )
  batch = next(b for b in dataset.eval_batches(1) if b['image_ids'] == 7)
  difference = batch['images'][0].astype(float) - scene.image
  assert np.abs(difference).mean() < 5  # 3.1 by JPEG alone: the scene is noisy
  (records,) = tmp_path.glob('**/*train.tfrecord*')
  drawn_at = records.stat().st_mtime_ns
  data.load(config)
  assert records.stat().st_mtime_ns == drawn_at


@pytest.mark.parametrize('name', ['ambiguous_shapes', 'coco_folder'])
def test_preparing_shows_our_bars_alone(tmp_path, name, capfd, caplog):
  folder = sets.write_folder(tmp_path / 'photos')
  canvas = dict(canvas=(128, 128), max_long_side=128)
  path = '' if name == 'ambiguous_shapes' else str(folder)
  data.load(_config(folder, name=name, path=path, **canvas))
  out, err = capfd.readouterr()
  assert not out and not caplog.records
  bars = {line.split(':')[0].strip() for line in err.split('\r')} - {''}
  first = 'drawing scenes' if name == 'ambiguous_shapes' else 'preparing'
  assert bars == {first, 'indexing train', 'indexing validation'}
  assert '\n' not in err  # nothing is left on the screen


def test_where_nothing_can_be_prepared_is_a_mistake_of_the_user(folder, tmp_path):
  (tmp_path / 'file').write_text('')
  place = {'data_dir': str(tmp_path / 'file' / 'datasets')}
  drawn = sets.config(name='ambiguous_shapes', num_train=1, num_validation=1, **place)
  photographs = sets.config(name='coco_folder', path=str(folder), **place)
  for config in (drawn, photographs):
    with pytest.raises(errors.UserError, match='datasets'):
      data.load(config)


def test_no_scenes_at_all_is_an_error(tmp_path):
  with pytest.raises(ValueError, match='num_train=0 .*1'):
    data.load(sets.config(name='ambiguous_shapes', data_dir=str(tmp_path), num_train=0))
