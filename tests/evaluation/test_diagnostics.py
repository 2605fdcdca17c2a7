"""DiagnosticRows and the measures made of them, on scenes whose answer is known."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict

from gfl_jax.evaluation import diagnostic_rows, diagnostics
from gfl_jax.evaluation.decode import Candidates, Detections
from gfl_jax.evaluation.diagnostic_rows import DiagnosticRows, Sides
from gfl_jax.models import canvas_points
from gfl_jax.ops import boxes as box_ops

KINDS = ['blurred', 'sharp']


def config(kind='general', **box):
  return ConfigDict({
    'box': {'kind': kind, 'start': 0.0, 'stop': 8.0, 'num_bins': 9} | box,
    'points': {'offset': 0.0, 'anchor_scale': 4},
    'model': {'neck': {'num_levels': 1}},
  })  # fmt: skip


def ground_truth(boxes, *, labels=None, crowd=(), sides=None):
  """One image, id 5; boxes xyxy."""
  annotations = []
  for i, (x1, y1, x2, y2) in enumerate(boxes):
    annotation = {
      'id': i + 1, 'image_id': 5, 'category_id': 10 + (labels[i] if labels else 0),
      'bbox': [x1, y1, x2 - x1, y2 - y1], 'iscrowd': int(i in crowd),
    }  # fmt: skip
    annotations.append(annotation | (sides or {}))
  categories = [{'id': 10, 'name': 'a'}, {'id': 11, 'name': 'b'}]
  return {
    'images': [{'id': 5}], 'annotations': annotations, 'categories': categories
  }  # fmt: skip


def candidates(boxes, scores, *, classes=None, quality=None, anchors=None):
  n = len(boxes)
  scores = np.array(scores, np.float32)
  return Candidates(
    class_scores=scores,
    quality=None if quality is None else np.broadcast_to(np.float32(quality), (n,)),
    scores=scores if quality is None else scores * quality,
    classes=np.zeros(n, int) if classes is None else np.array(classes),
    boxes=np.reshape(boxes, (-1, 4)).astype(np.float32),
    edge_std=np.ones((n, 4), np.float32),
    anchor_index=np.zeros(n, int) if anchors is None else np.array(anchors),
  )


def detections(boxes, scores, *, classes=None, std=1.0, anchors=None):
  n = len(boxes)
  return Detections(
    boxes=np.reshape(boxes, (-1, 4)).astype(np.float32),
    scores=np.array(scores, np.float32),
    classes=np.zeros(n, int) if classes is None else np.array(classes),
    valid=np.array(scores) > 0,
    edge_std=np.broadcast_to(np.float32(std), (n, 4)),
    anchor_index=np.zeros(n, int) if anchors is None else np.array(anchors),
  )


def observe(truth, found, cands=None, *, sides=None, kind='general', scale=(1.0, 1.0)):
  """The rows of a batch of one image, and a padding image."""
  cands = candidates([], []) if cands is None else cands
  n = len(found.scores)
  sides = sides or Sides(np.ones((n, 4)), np.zeros((n, 4, 9), np.float32))
  two = lambda tree: type(tree)(*(np.stack([v, v]) for v in tree))
  batch = {
    'images': np.zeros((2, 64, 96, 3), np.uint8),
    'image_ids': np.array([5, -1]),
    'scales': np.array([scale, (1, 1)], np.float32),
  }
  observed = DiagnosticRows(truth, config(kind))
  observed.add(batch, two(found), two(cands), two(sides))
  return observed


def measure(observed, kind='general'):
  scalars, arrays = diagnostics.summarize(observed.rows(), kind, observed.edge_kinds)
  json.dumps(scalars, allow_nan=False)  # floats and None alone
  return scalars, arrays


NOTHING = detections([], [])
BOX = (10, 10, 30, 30)  # against it: IoU 1, 0.6, 0.25, 0
SHIFTED = {1.0: BOX, 0.6: (15, 10, 35, 30), 0.25: (22, 10, 42, 30), 0.0: (60, 0, 70, 9)}


def test_overlaps_by_hand():
  others = np.array([BOX, (0, 0, 20, 20.0)])
  iou, share = diagnostic_rows.overlaps(np.array([(0, 0, 10, 40.0), BOX]), others)
  np.testing.assert_allclose(iou, [[0, 200 / 600], [1, 100 / 700]])
  np.testing.assert_allclose(share, [[0, 0.5], [1, 0.25]])
  assert np.isfinite(diagnostic_rows.overlaps(np.zeros((1, 4)), np.zeros((2, 4)))).all()


def test_true_positives_and_negatives_and_who_outranks_whom():
  boxes = [SHIFTED[k] for k in (1.0, 0.6, 0.25, 0.0, 0.0, 1.0)]
  classes = [0, 0, 0, 0, 1, 1]  # the last is at the right place with the wrong class
  scores = [0.5, 0.9, 0.99, 0.6, 0.5, 0.95]
  truth = ground_truth([BOX])
  found = candidates(boxes, scores, classes=classes)
  scalars, _ = measure(observe(truth, NOTHING, found))
  assert (scalars['true_positives'], scalars['true_negatives']) == (2, 2)
  # Pairs: .6 > .5, .6 < .9, .5 = .5, .5 < .9.
  assert scalars['outranking_negatives'] == 1.5 / 4
  assert scalars['negatives_above_a_positive'] == 1 / 2  # .6 is, .5 is not
  assert scalars['score_iou_correlation'] == pytest.approx(-1)
  quality = np.array([1.0, 0.1, 1.0, 0.1, 0.1, 1.0])
  found = candidates(boxes, scores, classes=classes, quality=quality)
  scalars, arrays = measure(observe(truth, NOTHING, found))
  assert scalars['outranking_negatives'] == 0
  assert scalars['negatives_above_a_positive'] == 0
  assert scalars['outranking_negatives_class_score'] == 1.5 / 4
  assert scalars['score_iou_correlation'] == pytest.approx(1)
  assert scalars['class_score_iou_correlation'] == pytest.approx(-1)
  sample = arrays['sample'][np.lexsort(arrays['sample'].T)]
  want = [[0.5, 0.1, 0.05, 0, 0], [0.6, 0.1, 0.06, 0, 0]]
  want += [[0.9, 0.1, 0.09, 0.6, 1], [0.5, 1, 0.5, 1, 1]]
  np.testing.assert_allclose(sample, want, rtol=1e-6)


def test_pairs_are_those_of_one_image_on_many_random_images():
  rng = np.random.default_rng(0)
  total, wins, rows, above = 0, 0.0, [], []
  for image in range(6):
    near = rng.integers(0, 2, 12) * (image > 0)  # the first has no positive
    scores = rng.integers(1, 6, 12) / 5
    boxes = [SHIFTED[1.0] if x else SHIFTED[0.0] for x in near]
    rows.append(observe(ground_truth([BOX]), NOTHING, candidates(boxes, scores)).rows())
    for a in scores[near == 0]:
      above.append(any(a > b for b in scores[near == 1]))
      for b in scores[near == 1]:
        total, wins = total + 1, wins + (a > b) + 0.5 * (a == b)
  scalars, _ = diagnostics.summarize(diagnostic_rows.join(rows), 'general', [])
  assert scalars['outranking_negatives'] == pytest.approx(wins / total)
  assert scalars['negatives_above_a_positive'] == pytest.approx(np.mean(above))


@settings(max_examples=30, deadline=None)
@given(*2 * [st.lists(st.integers(-4, 4), max_size=12)])
def test_exceeding_pairs_by_brute_force(below, above):
  want = sum((b > a) + 0.5 * (b == a) for b in below for a in above)
  assert diagnostic_rows.exceeding_pairs(np.array(below), np.array(above)) == want


def test_the_labels_of_true_positives_are_pooled():
  # Canvas px are 2 x 0.5 original px, so the anchor 13, (8, 8), lies at (4, 16).
  truth = ground_truth([(40, 0, 46, 60), (2, 4, 8, 40)])
  boxes = [(2, 4, 8, 40), (2, 4, 8, 31), (60, 0, 70, 9)]
  found = candidates(boxes, [0.9, 0.8, 0.7], anchors=[13, 0, 13])
  scalars, _ = measure(observe(truth, NOTHING, found, scale=(2.0, 0.5)))
  # IoU 1 and 0.75; centerness sqrt(2 / 4 * 12 / 24), and 0 of a point outside.
  assert scalars['positive_iou_mean'] == pytest.approx(0.875)
  assert scalars['positive_iou_std'] == pytest.approx(0.125)
  assert scalars['positive_centerness_mean'] == pytest.approx(0.25)
  assert scalars['positive_centerness_std'] == pytest.approx(0.25)


def test_centerness_is_that_of_the_labels():
  rng = np.random.default_rng(0)
  points, boxes = rng.uniform(0, 50, (200, 2)), rng.uniform(0, 25, (200, 4))
  boxes[:, 2:] += 25
  distances = np.concatenate([points - boxes[:, :2], boxes[:, 2:] - points], -1)
  got = diagnostic_rows._centerness(points, boxes)
  np.testing.assert_allclose(got, box_ops.centerness(distances), atol=1e-6)
  assert 20 < np.count_nonzero(got) < 180


def test_crowds_are_no_boxes_and_excuse_what_lies_on_them():
  crowd = (50, 0, 96, 64)
  truth = ground_truth([BOX, crowd], crowd=[1])
  boxes = [BOX, (60, 10, 80, 30), crowd, (5, 40, 25, 60), (7, 7, 7, 20)]
  found = candidates(boxes, [0.9, 0.8, 0.7, 0.6, 0.5])
  scalars, _ = measure(observe(truth, detections(boxes, [0.9] * 5), found))
  assert (scalars['true_positives'], scalars['true_negatives']) == (1, 1)
  assert scalars['matched_detections'] == 1
  assert scalars['calibration_error'] == pytest.approx(abs(0.9 - 1 / 2))


def test_each_true_box_is_matched_once_by_the_best_score():
  truth = np.array([BOX, (50, 10, 70, 30), (14, 10, 34, 30)], float)
  boxes = [SHIFTED[0.6], BOX, BOX, (50, 10, 70, 30), (50, 10, 70, 30)]
  found = detections(boxes, [0.9, 0.8, 0.7, 0.6, 0.04], classes=[0, 0, 0, 1, 0])
  iou, _ = diagnostic_rows.overlaps(found.boxes, truth)
  pairs = diagnostic_rows.match(found, iou, np.zeros(3, int))
  # The first takes the third box (IoU 0.9), the second the first, none is left for the
  # third; the fourth has the wrong class, the fifth too low a score.
  assert pairs.tolist() == [[0, 2], [1, 0]]


def test_scores_that_are_the_iou_are_calibrated():
  boxes = [SHIFTED[k] for k in (1.0, 0.6, 0.25)]
  found = detections(boxes, [1.0, 0.6, 0.25])
  scalars, arrays = measure(observe(ground_truth([BOX]), found))
  assert scalars['calibration_error'] == pytest.approx(0, abs=1e-6)
  assert scalars['detection_score_iou_correlation'] == pytest.approx(1)
  np.testing.assert_allclose(arrays['reliability'][:, 0].sum(), 3)


def test_sides_are_compared_in_strides_and_reported_in_original_pixels():
  # Canvas px are 2 x 0.5 original px; the anchor 13 lies at (8, 8) of the canvas.
  scale = (2.0, 0.5)
  point = canvas_points(config(), (64, 96)).centers[13]
  assert point.tolist() == [8, 8]
  truth_box = (2.0, 4.0, 8.0, 40.0)  # on the canvas (4, 2, 16, 20)
  sides = {'edge_sigma': [0.5, 4, 1, 8], 'edge_kind': ['sharp', *['blurred'] * 3]}
  found = detections(
    [truth_box], [0.9], std=[[1.0, 16.0, 0.5, 4.0]], anchors=[13]
  )  # px: strides 0.25, 1, 0.125, 0.25
  predicted = np.array([[1.0, 1.0, 1.0, 1.0]])
  observed = observe(
    ground_truth([truth_box], sides=sides), found,
    sides=Sides(predicted, np.zeros((1, 4, 2))), kind='gaussian', scale=scale,
  )  # fmt: skip
  rows = observed.rows()
  np.testing.assert_allclose(rows['side_error'], [[-0.5, -0.25, 0, 0.5]])
  np.testing.assert_allclose(rows['side_std'], [[0.25, 1, 0.125, 0.25]])
  np.testing.assert_allclose(rows['side_px'], [[4, 16, 4, 16]])
  scalars, arrays = measure(observed, 'gaussian')
  assert scalars['side_error'] == pytest.approx((2 + 4 + 0 + 8) / 4)
  assert scalars['spread_correlation'] == pytest.approx(0.6)  # ranks 2 4 1 3, 1 3 2 4
  # Of the box: 16 / 36, 0.5 / 6, 4 / 36 and 4 / 36, 1 / 6, 8 / 36: ranks 3 1 2, 1 2 3.
  assert scalars['spread_correlation_relative'] == pytest.approx(-0.5)
  assert scalars['spread_ratio_sharp'] == pytest.approx(2)
  assert scalars['spread_ratio_blurred'] == pytest.approx((16 + 0.5 + 4) / 13)
  z = np.array([-2, -0.25, 0, 2])
  pixels = np.array([1, 16, 0.5, 4])
  nll = 0.5 * z**2 + np.log(pixels * np.sqrt(2 * np.pi))
  assert scalars['side_nll'] == pytest.approx(nll.mean(), rel=1e-5)
  assert scalars['coverage_50'] == 0.5 and scalars['coverage_95'] == 0.5
  assert arrays['edge_kinds'].tolist() == ['sharp', 'blurred']  # by true spread
  np.testing.assert_allclose(arrays['kind_table'][:, 0], [1, 3])
  order = np.argsort(arrays['spread_sample'][:, 0])
  np.testing.assert_array_equal(arrays['spread_sample'][order, 2], [0, 1, 1, 1])


def synthetic_sides(kind, count=4000):
  """Rows of sides whose errors are drawn from the very distributions predicted."""
  rng = np.random.default_rng(0)
  shape = (count, 4)
  std = rng.uniform(0.3, 0.8, shape)
  # Within 3 deviations, so that no density is at the floor.
  errors = std * np.clip(rng.standard_normal(shape), -3, 3)
  distributions = diagnostic_rows.side_distributions
  fit = distributions.normal(errors, std)
  if kind == 'dirac':
    fit = distributions.FITS['dirac'](None, errors, None, None, None)
  columns = diagnostic_rows.no_rows()
  return columns | {
    'side_error': errors, 'side_std': std, 'side_cdf': fit.cdf,
    'side_density': fit.density, 'side_crps': fit.crps, 'side_px': np.full(shape, 8.0),
    'side_sigma': 8 * std, 'side_kind': rng.integers(0, 2, shape),
    'side_extent': rng.uniform(16, 64, shape),
  }  # fmt: skip


def test_right_distributions_have_nominal_coverage():
  scalars, _ = diagnostics.summarize(synthetic_sides('gaussian'), 'gaussian', KINDS)
  for level in (50, 80, 95):
    assert scalars[f'coverage_{level}'] == pytest.approx(level / 100, abs=0.01)
  assert scalars['spread_correlation'] == pytest.approx(1)
  assert scalars['spread_ratio_blurred'] == pytest.approx(1)
  assert scalars['constant_std'] is None


def test_to_know_the_size_of_an_object_is_not_to_know_its_spread():
  rows, rng = synthetic_sides('gaussian'), np.random.default_rng(1)
  extent, shares = rows['side_extent'], rng.uniform(0.04, 0.1, (2, 4000, 4))
  rows |= {'side_kind': np.zeros((4000, 4)), 'side_sigma': extent * shares[0]}
  by_size, _ = diagnostics.summarize(
    rows | {'side_std': extent * (0.07 + 1e-3 * shares[1]) / 8}, 'gaussian', KINDS
  )
  assert by_size['spread_correlation'] > 0.75
  assert by_size['spread_correlation_relative'] == pytest.approx(0, abs=0.03)
  right, _ = diagnostics.summarize(
    rows | {'side_std': extent * shares[0] / 8}, 'gaussian', KINDS
  )
  assert right['spread_correlation_relative'] == pytest.approx(1)


def test_dirac_gets_the_one_deviation_of_its_errors():
  rows = synthetic_sides('dirac')
  scalars, arrays = diagnostics.summarize(rows, 'dirac', KINDS)
  rms = np.sqrt(np.square(rows['side_error']).mean())
  assert scalars['constant_std'] == pytest.approx(rms)
  # The mean negative log likelihood of a normal at its own best deviation, per px.
  want = 0.5 * np.log(2 * np.pi * np.e * (8 * rms) ** 2)
  assert scalars['side_nll'] == pytest.approx(want, rel=1e-4)
  assert scalars['side_crps'] == pytest.approx(scalars['side_error'])
  assert scalars['spread_correlation'] is None and scalars['spread_ratio_sharp'] is None
  assert len(arrays['spread_sample']) == 0
  better, _ = diagnostics.summarize(synthetic_sides('gaussian'), 'gaussian', KINDS)
  assert better['side_nll'] < scalars['side_nll']
  assert better['side_crps'] < scalars['side_crps']


def test_a_side_beyond_the_grid_costs_the_floor_and_is_counted():
  far = (
    0,
    10,
    95,
    30,
  )  # the right side is 10.9 strides from (8, 8), the grid ends at 8
  observed = observe(ground_truth([far]), detections([far], [0.9], anchors=[13]))
  scalars, _ = measure(observed)
  assert scalars['sides_at_floor'] == 0.5  # the top side is 0.25 strides before 0
  # Left is at 1 stride, bottom at 2.75: inside, at 1/9 per stride of 8 px.
  want = (2 * -np.log(1e-6) + 2 * np.log(9 * 8)) / 4
  assert scalars['side_nll'] == pytest.approx(want)


@pytest.mark.parametrize('kind, n', [('dirac', 1), ('gaussian', 2), ('general', 9)])
def test_nothing_to_measure_gives_none(kind, n):
  sides = Sides(np.zeros((0, 4)), np.zeros((0, 4, n), np.float32))
  for truth in (ground_truth([]), ground_truth([BOX])):
    scalars, arrays = measure(observe(truth, NOTHING, sides=sides, kind=kind), kind)
    counts = ('true_positives', 'true_negatives', 'matched_detections')
    assert [scalars.pop(name) for name in counts] == [0, 0, 0]
    assert set(scalars.values()) == {None}
    assert arrays['sample'].shape == (0, 5)
  # Detections, but of no true box; and without any knowledge of the sides.
  found, sides = detections([BOX], [0.9]), Sides(np.ones((1, 4)), np.zeros((1, 4, n)))
  scalars, _ = measure(
    observe(ground_truth([]), found, candidates([BOX], [0.9]), sides=sides, kind=kind),
    kind,
  )
  assert (scalars['true_negatives'], scalars['matched_detections']) == (1, 0)
  scalars, _ = measure(
    observe(ground_truth([BOX]), found, sides=sides, kind=kind), kind
  )
  assert scalars['matched_detections'] == 1 and scalars['spread_correlation'] is None
  assert scalars['side_crps'] > 0


def test_the_sample_does_not_depend_on_the_order_of_images_drawn_from():
  boxes = [SHIFTED[1.0]] * 30 + [SHIFTED[0.0]] * 30
  found = candidates(boxes, np.linspace(0.1, 0.9, 60))
  rows = [observe(ground_truth([BOX]), NOTHING, found).rows() for _ in range(2)]
  np.testing.assert_array_equal(rows[0]['sample'], rows[1]['sample'])
  assert len(rows[0]['sample']) == 20  # ten of each: memory is bounded
  assert rows[0]['sample'][:, 4].sum() == 10


def test_reliability_by_hand():
  scores = np.array([0.05, 0.1, 0.15, 1.0, 0.95])
  outcomes = np.array([0.0, 0.4, 0.2, 1.0, 0.5])
  table = diagnostics.reliability(scores, outcomes, 10)
  np.testing.assert_allclose(table[0], [1, 0.05, 0.0])
  np.testing.assert_allclose(table[1], [2, 0.125, 0.3])
  np.testing.assert_allclose(table[9], [2, 0.975, 0.75])
  assert np.isnan(table[2:9, 1:]).all() and not table[2:9, 0].any()
  want = (0.05 + 2 * 0.175 + 2 * 0.225) / 5
  assert diagnostics.calibration_error(table) == pytest.approx(want)
  empty = diagnostics.reliability(np.zeros(0), np.zeros(0), 10)
  assert diagnostics.calibration_error(empty) is None


def test_a_calibrated_forecast_has_almost_no_error():
  rng = np.random.default_rng(0)
  scores = rng.uniform(0, 1, 200_000)
  outcomes = rng.random(200_000) < scores
  table = diagnostics.reliability(scores, outcomes, 10)
  assert diagnostics.calibration_error(table) < 0.005
  table = diagnostics.reliability(scores, np.clip(scores - 0.1, 0, 1), 10)
  # Off by 0.1, but in the first bin, where it is cut, by 0.05.
  assert diagnostics.calibration_error(table) == pytest.approx(0.095, abs=0.001)
