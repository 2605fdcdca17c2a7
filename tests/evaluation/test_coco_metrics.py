import contextlib
import io
import json
import pathlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from gfl_jax.evaluation.coco_metrics import (
  METRICS,
  evaluate_detections,
  to_coco_results,
)
from gfl_jax.evaluation.decode import Detections

COCO100 = pathlib.Path(__file__).parents[1] / 'golden' / 'cocoeval100'


def pycocotools_metrics(ground_truth, detections):
  """The 12 numbers and the AP per category id, -1 where there is nothing to find."""
  with contextlib.redirect_stdout(io.StringIO()):
    truth = COCO()
    truth.dataset = {'info': {}, **ground_truth}
    truth.createIndex()
    evaluation = COCOeval(truth, truth.loadRes(detections), 'bbox')
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
  precision = evaluation.eval['precision'][:, :, :, 0, -1]
  per_class = {
    category: precision[:, :, k].mean()
    for k, category in enumerate(evaluation.params.catIds)
  }
  return evaluation.stats, per_class


def assert_equal_to_pycocotools(ground_truth, detections):
  stats, per_class = pycocotools_metrics(ground_truth, detections)
  got = evaluate_detections(ground_truth, detections)
  number = lambda value: -1.0 if value is None else value
  np.testing.assert_allclose([number(got[m]) for m in METRICS], stats, atol=1e-9)
  names = {c['id']: c['name'] for c in ground_truth['categories']}
  assert list(got['per_class']) == [names[category] for category in per_class]
  np.testing.assert_allclose(
    [number(ap) for ap in got['per_class'].values()],
    list(per_class.values()),
    atol=1e-9,
  )


def load_coco100():
  read = lambda name: json.loads((COCO100 / name).read_text())
  return read('instances_gt.json'), read('fakebbox100_results.json')


def test_cocos_own_example():
  ground_truth, detections = load_coco100()
  metrics = evaluate_detections(ground_truth, detections)
  want = '.507 .699 .575 .594 .559 .493 .389 .596 .598 .655 .603 .557'
  assert ' '.join(f'{metrics[m]:.3f}'.removeprefix('0') for m in METRICS) == want
  assert_equal_to_pycocotools(ground_truth, detections)


def random_case(seed):
  """Three images with boxes of all sizes, crowds among them, one image without any."""
  rng = np.random.default_rng(seed)
  box = lambda: [*rng.uniform(0, 100, 2).round(2), *rng.uniform(4, 150, 2).round(2)]
  annotations, detections = [], []
  for image in (10, 20, 30):
    for _ in range(rng.integers(1, 8)):
      x, y, w, h = box()
      category = int(rng.choice([3, 5]))
      annotations.append({
        'id': len(annotations) + 1,
        'image_id': image,
        'category_id': category,
        'bbox': [x, y, w, h],
        'area': w * h,
        'iscrowd': int(rng.random() < 0.2),
      })  # fmt: skip
      if rng.random() < 0.8:
        near = (np.array([x, y, w, h]) * rng.uniform(0.9, 1.1, 4)).tolist()
        detections.append((image, category, near))
  detections += [(int(rng.choice([10, 20, 30, 40])), 7, box()) for _ in range(5)]
  ground_truth = {
    'images': [{'id': i, 'width': 300, 'height': 300} for i in (10, 20, 30, 40)],
    'categories': [{'id': i, 'name': f'class {i}'} for i in (5, 3, 7)],
    'annotations': annotations,
  }
  results = [
    {'image_id': i, 'category_id': c, 'bbox': b, 'score': round(rng.random(), 2)}
    for i, c, b in detections
  ]
  return ground_truth, results


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_equals_pycocotools_with_crowds_and_empty_images(seed):
  assert_equal_to_pycocotools(*random_case(seed))


def test_the_ground_truth_itself_scores_one():
  ground_truth, _ = random_case(0)
  detections = [
    {k: a[k] for k in ('image_id', 'category_id', 'bbox')} | {'score': 0.5}
    for a in ground_truth['annotations']
    if not a['iscrowd']
  ]
  metrics = evaluate_detections(ground_truth, detections)
  assert metrics['AP'] == pytest.approx(1.0)
  assert metrics['per_class']['class 7'] is None


def test_prints_nothing(capfd):
  evaluate_detections(*random_case(0))
  assert capfd.readouterr() == ('', '')


def test_no_detection_is_zero_and_no_ground_truth_is_none():
  ground_truth, detections = random_case(0)
  assert evaluate_detections(ground_truth, [])['AP'] == 0.0
  metrics = evaluate_detections(ground_truth | {'annotations': []}, detections)
  assert {metrics[m] for m in METRICS} == {None}
  assert set(metrics['per_class'].values()) == {None}


@pytest.mark.parametrize(
  'change, message',
  [
    ({'image_id': 77}, r'unknown image_id: \[77\]'),
    ({'category_id': 4}, r'unknown category_id: \[4\]'),
    ({'score': float('nan')}, 'not finite'),
    ({'bbox': [0, 0, float('inf'), 1]}, 'not finite'),
  ],
)
def test_rejects_a_detection_that_cannot_be_matched(change, message):
  ground_truth, detections = random_case(0)
  with pytest.raises(ValueError, match=message):
    evaluate_detections(ground_truth, [*detections, detections[0] | change])


def test_rejects_a_broken_ground_truth():
  ground_truth, detections = random_case(0)
  del ground_truth['annotations'][1]['area']
  with pytest.raises(ValueError, match="annotation 2 has no 'area'"):
    evaluate_detections(ground_truth, detections)
  ground_truth, detections = random_case(0)
  ground_truth['categories'][0]['name'] = 'class 3'
  with pytest.raises(ValueError, match='class 3'):
    evaluate_detections(ground_truth, detections)


def make_detections(boxes, scores, classes, valid):
  boxes = np.array(boxes, np.float32)
  return Detections(
    boxes=boxes,
    scores=np.array(scores, np.float32),
    classes=np.array(classes, np.int32),
    valid=np.array(valid),
    edge_std=np.zeros_like(boxes),
    anchor_index=np.zeros(boxes.shape[:2], np.int32),
  )


DETECTIONS = make_detections(
  boxes=[[[8, 4, 24, 8], [0, 0, 2, 2]], [[1, 1, 3, 3], [0, 0, 0, 0]]],
  scores=[[0.75, 0.25], [0.5, 0.0]],
  classes=[[1, 0], [1, 0]],
  valid=[[True, True], [True, False]],
)


def test_results_have_the_data_sets_ids_and_leave_out_padding():
  results = to_coco_results(DETECTIONS, np.array([9, -1]), (18, 44))
  assert results == [
    {'image_id': 9, 'category_id': 44, 'bbox': [8.0, 4.0, 16.0, 4.0], 'score': 0.75},
    {'image_id': 9, 'category_id': 18, 'bbox': [0.0, 0.0, 2.0, 2.0], 'score': 0.25},
  ]
  json.dumps(results)
  both = to_coco_results(DETECTIONS, np.array([9, 5]), (18, 44))
  assert [r['image_id'] for r in both] == [9, 9, 5]
  assert both[2]['bbox'] == [1, 1, 2, 2]


def test_results_reject_a_class_without_an_id():
  with pytest.raises(ValueError, match='class 1 .* 1 classes.*num_classes'):
    to_coco_results(DETECTIONS, np.array([9, 5]), (18,))
