import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from gfl_jax.evaluation import diagnostic_rows, evaluator, samples
from gfl_jax.models import Predictions, canvas_points

CONFIG = ConfigDict({
  'data': {'mean': (0.0, 0.0, 0.0), 'std': (1.0, 1.0, 1.0)},
  'score': {'kind': 'joint'},
  'box': {'kind': 'general', 'start': 0.0, 'stop': 8.0, 'num_bins': 9},
  'decode': {
    'score_threshold': 0.05,
    'candidates_per_level': 20,
    'nms': 'greedy',
    'nms_iou': 0.6,
    'max_detections': 5,
    'min_size': 0.0,
    'variance_voting': 0.0,
    'uncertainty_penalty': False,
  },
  'points': {'offset': 0.0, 'anchor_scale': 4},
  'model': {'neck': {'num_levels': 1}},
})  # fmt: skip
CANVAS = (32, 48)
NUM_CELLS = 24  # 4 x 6 cells of stride 8
SCALE = (2.0, 1.0)  # canvas px per original px
CATEGORIES = [{'id': 7, 'name': 'cup <b>'}, {'id': 3, 'name': 'dog'}]


class Seer:
  """A detector that reads the boxes off the image: its first pixel names them."""

  def apply(self, variables, images, *, train):
    assert not train
    number = images[:, 0, 0, 0].astype(int)
    return jax.tree.map(lambda table: table[number], variables)


def table(num_images):
  """Image i has one box: around cell (1, 1 + i % 4), of class i % 2."""
  class_logits = np.full((num_images, NUM_CELLS, 2), -9.0, np.float32)
  rows = np.arange(num_images)
  class_logits[rows, 7 + rows % 4, rows % 2] = 3.0
  box_logits = np.full((num_images, NUM_CELLS, 4, 9), -60.0, np.float32)
  box_logits[..., 1] = 0.0
  return Predictions(jnp.array(class_logits), jnp.array(box_logits), None)


def true_box(number):
  """On the canvas: one stride to each side of the point."""
  x = 8.0 * (1 + number % 4)
  return [x - 8, 0.0, x + 8, 16.0]


def ground_truth(num_images):
  annotations = []
  for i in range(num_images):
    x1, y1, x2, y2 = true_box(i)
    box = [x1 / SCALE[0], y1 / SCALE[1], (x2 - x1) / SCALE[0], (y2 - y1) / SCALE[1]]
    annotations.append({
      'id': i + 1,
      'image_id': 100 + i,
      'category_id': CATEGORIES[i % 2]['id'],
      'bbox': box,
      'area': box[2] * box[3],
      'iscrowd': 0,
    })  # fmt: skip
  images = [{'id': 100 + i, 'width': 24, 'height': 32} for i in range(num_images)]
  return {'images': images, 'annotations': annotations, 'categories': CATEGORIES}


def batches(num_images, batch_size):
  """As the data pipeline makes them: the last one filled with padding images."""
  for start in range(0, num_images, batch_size):
    numbers = np.arange(start, start + batch_size)
    real = numbers < num_images
    images = np.zeros((batch_size, *CANVAS, 3), np.uint8)
    images[:, 0, 0] = (numbers * real)[:, None]
    boxes = np.zeros((batch_size, 4, 4), np.float32)
    boxes[:, 0] = [true_box(n) for n in numbers]
    valid = np.zeros((batch_size, 4), bool)
    valid[:, 0] = real
    yield {
      'images': images,
      'image_sizes': np.where(real[:, None], CANVAS, 0).astype(np.int32),
      'boxes': boxes,
      'labels': np.repeat(numbers[:, None] % 2, 4, 1).astype(np.int32),
      'valid': valid,
      'image_ids': np.where(real, 100 + numbers, -1).astype(np.int32),
      'scales': np.where(real[:, None], SCALE, 1).astype(np.float32),
    }


predict = jax.jit(evaluator.make_predict(Seer(), CONFIG))


def evaluate(tmp_path, given_batches, num_images):
  return evaluator.evaluate(
    predict,
    table(num_images),
    given_batches,
    ground_truth(num_images),
    config=CONFIG,
    folder=tmp_path / 'eval',
    step=12,
  )


def test_a_detector_that_knows_scores_one(tmp_path):
  metrics = evaluate(tmp_path, batches(14, 4), 14)
  assert metrics['AP'] == pytest.approx(1.0)
  assert metrics['per_class'] == pytest.approx({'cup <b>': 1.0, 'dog': 1.0})
  assert (metrics['num_images'], metrics['step']) == (14, 12)


def test_a_disk_that_refuses_the_files_takes_no_metrics(tmp_path, caplog):
  (tmp_path / 'eval').write_text('no folder can be made here')
  assert evaluate(tmp_path, batches(14, 4), 14)['AP'] == pytest.approx(1.0)
  assert 'step 12' in caplog.text and str(tmp_path / 'eval') in caplog.text


def test_samples_are_of_a_processs_own_images():
  truth = ground_truth(14)
  share = [4, 5, 9]
  with_boxes = {a['image_id'] for a in truth['annotations']}
  assert samples.choose_samples(truth, share) == with_boxes & set(share)
  every = samples.choose_samples(truth, [image['id'] for image in truth['images']])
  assert len(every) == min(samples.NUM_SAMPLES, len(with_boxes))


def test_files_hold_what_was_measured(tmp_path):
  metrics = evaluate(tmp_path, batches(14, 4), 14)
  folder = tmp_path / 'eval'
  names = sorted(path.name for path in folder.iterdir())
  assert names == [
    'detections.json', 'diagnostics.npz', 'metrics.json', 'samples.npz'
  ]  # fmt: skip
  assert json.loads((folder / 'metrics.json').read_text()) == metrics
  results = json.loads((folder / 'detections.json').read_text())
  assert [r['image_id'] for r in results] == list(range(100, 114))
  assert [r['category_id'] for r in results] == [7, 3] * 7
  assert results[1]['bbox'] == [4.0, 0.0, 8.0, 16.0]


def test_samples_are_in_pixels_of_the_resized_image(tmp_path):
  evaluate(tmp_path, batches(14, 4), 14)
  with np.load(tmp_path / 'eval' / 'samples.npz') as arrays:
    kept = dict(arrays)
  assert kept['num_samples'] == samples.NUM_SAMPLES
  assert kept['class_names'].tolist() == ['cup <b>', 'dog']
  last = samples.NUM_SAMPLES - 1
  assert (kept['0/image_id'], kept[f'{last}/image_id']) == (100, 113)
  assert kept['0/image'].shape == (*CANVAS, 3)
  for name in ('0/boxes', '0/true_boxes'):
    np.testing.assert_allclose(kept[name], [true_box(0)], atol=1e-4)
  center = canvas_points(CONFIG, CANVAS).centers[7]
  bins = 8.0 * np.arange(9)
  positions = [center[0] - bins, center[1] - bins, center[0] + bins, center[1] + bins]
  np.testing.assert_allclose(kept['0/edge_positions'], [positions])
  np.testing.assert_allclose(kept['0/edge_heights'].sum(-1), 1, atol=1e-6)
  np.testing.assert_allclose(kept['0/edge_heights'][..., 1], 1, atol=1e-6)


@pytest.mark.parametrize('batch_size', [1, 14])
def test_the_batch_size_changes_nothing(tmp_path, batch_size):
  want = evaluate(tmp_path, batches(14, 4), 14)
  got = evaluate(tmp_path, batches(14, batch_size), 14)
  assert got | {'seconds': 0} == want | {'seconds': 0}


def test_a_second_evaluation_replaces_the_first(tmp_path):
  evaluate(tmp_path, batches(14, 4), 14)
  evaluate(tmp_path, batches(4, 4), 4)
  assert len(json.loads((tmp_path / 'eval' / 'detections.json').read_text())) == 4


def test_images_must_come_once(tmp_path):
  first, *rest = batches(14, 4)
  with pytest.raises(ValueError, match=r'4 missing \[100, 101, 102, 103\]'):
    evaluate(tmp_path, rest, 14)
  with pytest.raises(ValueError, match=r'4 twice \[100, 101, 102, 103\]'):
    evaluate(tmp_path, [first, first, *rest], 14)
  assert not (tmp_path / 'eval').exists()


def test_no_annotation_at_all(tmp_path):
  truth = ground_truth(4) | {'annotations': []}
  metrics = evaluator.evaluate(
    predict,
    table(4),
    batches(4, 4),
    truth,
    config=CONFIG,
    folder=tmp_path / 'eval',
    step=0,
  )
  assert metrics['AP'] is None
  with np.load(tmp_path / 'eval' / 'samples.npz') as arrays:
    assert arrays['num_samples'] == 0


def half(start, stop):
  """What one process has of 14 images, as it would hand it over."""
  observed = diagnostic_rows.DiagnosticRows(ground_truth(14), CONFIG)
  ids = []
  for batch in list(batches(14, 1))[start:stop]:
    found, sides, rest = jax.tree.map(np.asarray, predict(table(14), batch))
    observed.add(batch, found, rest, sides)
    ids += batch['image_ids'].tolist()
  return [{'image_id': i} for i in ids], ids, observed.rows()


def test_processes_join_what_they_have(monkeypatch):
  first, second, whole = (half(*part) for part in ((0, 9), (9, 14), (0, 14)))
  monkeypatch.setattr(jax, 'process_count', lambda: 2)
  sent = []
  monkeypatch.setattr(evaluator, '_gather', lambda mine: sent.append(mine) or [mine])
  evaluator._gather_processes(*second)
  monkeypatch.setattr(evaluator, '_gather', lambda mine: [mine, sent.pop(0)])
  results, ids, rows = evaluator._gather_processes(*first)
  assert (results, ids) == whole[:2]
  assert rows.keys() == whole[2].keys()
  for name in rows:
    np.testing.assert_array_equal(rows[name], whole[2][name], err_msg=name)


def test_gathered_bytes_may_differ_in_length(monkeypatch):
  other = iter([np.array(2), np.array([7, 8, 0, 0], np.uint8)])

  def allgather(mine):
    return np.stack([mine, next(other)])

  monkeypatch.setattr(evaluator.multihost_utils, 'process_allgather', allgather)
  assert evaluator._gather(b'abcd') == [b'abcd', bytes([7, 8])]


def test_diagnostics_stand_in_the_metrics_and_their_arrays_beside(tmp_path):
  found = evaluate(tmp_path, batches(14, 4), 14)['diagnostics']
  # And of class 0, whose boxes all anchors share, those above (7) and, beside the
  # border, to the left (4) that the border cuts to half of the true box.
  assert found['true_positives'] == 14 + 7 + 4
  assert found['matched_detections'] == 14
  assert found['side_error'] == pytest.approx(0, abs=1e-5)
  score = 1 / (1 + np.exp(-3))
  assert found['calibration_error'] == pytest.approx(1 - score, abs=1e-5)
  # Each distribution is one triangle of a stride (4 or 8 px) on either side.
  np.testing.assert_allclose(found['side_nll'], np.log([4, 8, 4, 8]).mean(), rtol=1e-4)
  with np.load(tmp_path / 'eval' / 'diagnostics.npz') as arrays:
    assert arrays['reliability'][9, 0] == 14
    assert arrays['sample'].shape[1] == 5


@pytest.mark.parametrize('kind', ['dirac', 'gaussian'])
def test_samples_of_the_other_representations(tmp_path, kind):
  config = ConfigDict(CONFIG.to_dict())
  config.box.update(kind=kind, scale=1.0)
  outputs = np.zeros((4, NUM_CELLS, 4, 1 if kind == 'dirac' else 2), np.float32)
  outputs[..., 1:] = 2 * np.log(0.5)
  variables = table(4)._replace(box_logits=jnp.array(outputs))
  evaluator.evaluate(
    jax.jit(evaluator.make_predict(Seer(), config)), variables, batches(4, 4),
    ground_truth(4), config=config, folder=tmp_path / 'eval', step=0,
  )  # fmt: skip
  with np.load(tmp_path / 'eval' / 'samples.npz') as arrays:
    kept = dict(arrays)
  positions, heights = kept['0/edge_positions'][0], kept['0/edge_heights'][0]
  middle = positions.shape[-1] // 2
  np.testing.assert_allclose(positions[:, middle], true_box(0))
  if kind == 'dirac':
    assert positions.shape == (4, 1) and not kept['0/edge_std'].any()
    return
  np.testing.assert_allclose(kept['0/edge_std'], 4)  # half a stride, in canvas px
  # The area under the curve over px is a stride's worth of probability.
  steps = np.abs(np.diff(positions, axis=-1))
  area = ((heights[:, 1:] + heights[:, :-1]) / 2 * steps).sum(-1) / 8
  np.testing.assert_allclose(area, 1, atol=1e-3)
