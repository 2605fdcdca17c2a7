import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gfl_jax.ops.nms import class_aware_nms

COUNT, OUTPUTS = 24, 10


@functools.cache
def compiled(iou_threshold, max_outputs=OUTPUTS):
  nms = functools.partial(
    class_aware_nms, iou_threshold=iou_threshold, max_outputs=max_outputs
  )
  return jax.jit(jax.vmap(nms))


def kept(boxes, scores, classes, iou_threshold, max_outputs=OUTPUTS):
  batch = [np.asarray(x)[None] for x in (boxes, scores, classes)]
  indices, valid = compiled(iou_threshold, max_outputs)(*batch)
  assert indices.shape == valid.shape == (1, max_outputs)
  # What is kept comes first; the rest is index 0.
  assert not np.any(np.diff(valid[0].astype(int)) > 0) and not indices[~valid].any()
  return indices[0][valid[0]].tolist()


def definition(boxes, scores, classes, iou_threshold):
  """The greedy rule, as it reads."""
  taken = []
  order = np.argsort(-scores, kind='stable')
  for i in order[np.isfinite(scores[order]) & (scores[order] > 0)]:
    rivals = [j for j in taken if classes[j] == classes[i]]
    if all(overlap(boxes[i], boxes[j]) <= iou_threshold for j in rivals):
      taken.append(int(i))
  return taken[:OUTPUTS]


def overlap(a, b):
  low, high = np.maximum(a[:2], b[:2]), np.minimum(a[2:], b[2:])
  intersection = np.prod(np.maximum(high - low, 0))
  area = lambda box: (box[2] - box[0]) * (box[3] - box[1])
  return intersection / np.maximum(area(a) + area(b) - intersection, np.float32(1e-6))


# Small whole numbers: IoUs are exact and often equal to the threshold.
small_boxes = st.tuples(*[st.integers(0, 6)] * 2, *[st.integers(0, 5)] * 2).map(
  lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3])
)
some_scores = st.one_of(
  st.integers(1, 12).map(lambda n: n / 16),
  st.sampled_from([0.0, -1.0, np.nan, np.inf, -np.inf]),
)


@pytest.mark.parametrize('iou_threshold', [0.0, 0.25, 0.5, 0.6, 1.0])
@settings(max_examples=60, deadline=None)
@given(
  boxes=st.lists(small_boxes, min_size=COUNT, max_size=COUNT),
  scores=st.lists(some_scores, min_size=COUNT, max_size=COUNT),
  num_classes=st.integers(1, 3),
)
def test_nms_equals_its_definition(iou_threshold, boxes, scores, num_classes):
  boxes, scores = np.array(boxes, np.float32), np.array(scores, np.float32)
  classes = np.arange(COUNT) % num_classes
  expected = definition(boxes, scores, classes, np.float32(iou_threshold))
  assert kept(boxes, scores, classes, iou_threshold) == expected


def test_images_of_a_batch_are_independent():
  rng = np.random.default_rng(0)
  corners = rng.uniform(0, 30, (5, COUNT, 2))
  boxes = np.concatenate([corners, corners + rng.uniform(1, 20, (5, COUNT, 2))], axis=2)
  boxes, scores = boxes.astype(np.float32), rng.uniform(size=(5, COUNT))
  classes = rng.integers(0, 2, (5, COUNT))
  indices, valid = compiled(0.5)(boxes, scores.astype(np.float32), classes)
  for i in range(5):
    alone = definition(boxes[i], scores[i], classes[i], 0.5)
    assert indices[i][valid[i]].tolist() == alone


def test_an_iou_equal_to_the_threshold_does_not_suppress():
  boxes = np.array([[0, 0, 2, 1], [0, 0, 1, 1]], np.float32)  # IoU exactly 1/2
  scores, classes = np.array([0.9, 0.8], np.float32), np.array([0, 0])
  assert kept(boxes, scores, classes, 0.5, 2) == [0, 1]
  assert kept(boxes, scores, classes, 0.4999, 2) == [0]


def test_a_suppressed_box_suppresses_nothing():
  # 0 covers 1 and 1 covers 2, but 0 does not cover 2.
  boxes = np.array([[0, 0, 10, 1], [4, 0, 14, 1], [8, 0, 18, 1]], np.float32)
  scores, classes = np.array([0.9, 0.8, 0.7], np.float32), np.zeros(3, int)
  assert kept(boxes, scores, classes, 0.4, 3) == [0, 2]


def test_far_coordinates_and_many_classes_do_not_mix():
  # Classes are compared, not added to coordinates: no precision is lost far out.
  boxes = np.array([[4e4, 4e4, 4e4 + 4, 4e4 + 4]] * 3, np.float32)
  scores, classes = np.array([0.5, 0.6, 0.7], np.float32), np.array([79, 1200, 79])
  assert kept(boxes, scores, classes, 0.5, 3) == [2, 1]


def test_without_candidates_nothing_is_valid():
  boxes, classes = np.ones((COUNT, 4), np.float32), np.zeros(COUNT, int)
  assert kept(boxes, np.zeros(COUNT, np.float32), classes, 0.5) == []
  assert kept(boxes[:0], np.zeros(0, np.float32), classes[:0], 0.5) == []


def test_more_outputs_than_candidates():
  boxes = np.array([[0, 0, 1, 1], [5, 5, 6, 6]], np.float32)
  assert kept(boxes, np.array([0.1, 0.2], np.float32), np.zeros(2, int), 0.5) == [1, 0]


@pytest.mark.parametrize('threshold, outputs', [(-0.1, 5), (1.1, 5), (0.5, 0)])
def test_bad_arguments_are_refused(threshold, outputs):
  with pytest.raises(ValueError, match=f'{threshold}.*{outputs}'):
    class_aware_nms(
      jnp.zeros((2, 4)),
      jnp.zeros(2),
      jnp.zeros(2, int),
      iou_threshold=threshold,
      max_outputs=outputs,
    )
