"""NMS guided by quality, and voting, against loops that read as their algorithms."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gfl_jax.ops.nms import class_aware_nms, iou_guided_nms, variance_voting

COUNT, OUTPUTS = 20, 8


def overlap(a, b):
  low, high = np.maximum(a[:2], b[:2]), np.minimum(a[2:], b[2:])
  intersection = np.prod(np.maximum(high - low, 0))
  area = lambda box: (box[2] - box[0]) * (box[3] - box[1])
  return intersection / np.maximum(area(a) + area(b) - intersection, np.float32(1e-6))


# NMS guided by quality.


@functools.cache
def compiled(iou_threshold, max_outputs=OUTPUTS):
  nms = functools.partial(
    iou_guided_nms, iou_threshold=iou_threshold, max_outputs=max_outputs
  )
  return jax.jit(jax.vmap(nms))


def kept(boxes, scores, quality, classes, iou_threshold=0.5, max_outputs=OUTPUTS):
  """(row, score) of each box kept."""
  batch = [np.asarray(x)[None] for x in (boxes, scores, quality, classes)]
  found = compiled(iou_threshold, max_outputs)(*batch)
  indices, new_scores, valid = (np.asarray(x[0]) for x in found)
  assert indices.shape == new_scores.shape == valid.shape == (max_outputs,)
  # What is kept comes first; the rest is 0.
  assert not np.any(np.diff(valid.astype(int)) > 0)
  assert not indices[~valid].any() and not new_scores[~valid].any()
  return list(zip(indices[valid].tolist(), new_scores[valid].tolist(), strict=True))


def definition(boxes, scores, quality, classes, iou_threshold):
  left = [i for i in range(len(boxes)) if np.isfinite(scores[i]) and scores[i] > 0]
  found = []
  while left:
    best = max(left, key=lambda i: (quality[i], -i))
    score = scores[best]
    left.remove(best)
    for i in list(left):
      same = classes[i] == classes[best]
      if same and overlap(boxes[best], boxes[i]) > iou_threshold:
        score = max(score, scores[i])
        left.remove(i)
    found.append((best, float(score)))
  return sorted(found, key=lambda pair: (-pair[1], pair[0]))[:OUTPUTS]


# Small whole numbers: IoUs are exact and often equal to the threshold.
small_boxes = st.tuples(*[st.integers(0, 6)] * 2, *[st.integers(0, 5)] * 2).map(
  lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3])
)
some_scores = st.one_of(
  st.integers(1, 12).map(lambda n: n / 16),
  st.sampled_from([0.0, -1.0, np.nan, np.inf, -np.inf]),
)


@pytest.mark.parametrize('iou_threshold', [0.0, 0.25, 0.6, 1.0])
@settings(max_examples=30, deadline=None)
@given(
  boxes=st.lists(small_boxes, min_size=COUNT, max_size=COUNT),
  scores=st.lists(some_scores, min_size=COUNT, max_size=COUNT),
  quality=st.lists(st.integers(-4, 12), min_size=COUNT, max_size=COUNT),
  num_classes=st.integers(1, 3),
)
def test_guided_nms_equals_its_definition(
  iou_threshold, boxes, scores, quality, num_classes
):
  boxes, scores, quality = (np.array(x, np.float32) for x in (boxes, scores, quality))
  classes = np.arange(COUNT) % num_classes
  arguments = boxes, scores, quality, classes, np.float32(iou_threshold)
  assert kept(*arguments[:4], iou_threshold) == definition(*arguments)


def random_candidates(seed, images=1):
  rng = np.random.default_rng(seed)
  corners = rng.uniform(0, 20, (images, COUNT, 2))
  sides = rng.uniform(4, 20, (images, COUNT, 2))
  boxes = np.concatenate([corners, corners + sides], axis=2).astype(np.float32)
  scores, quality = rng.uniform(size=(2, images, COUNT)).astype(np.float32)
  return boxes, scores, quality, rng.integers(0, 2, (images, COUNT))


def test_images_of_a_batch_are_independent():
  images = random_candidates(0, images=5)
  images[1][2] = 0  # one without candidates ends at once
  indices, scores, valid = compiled(0.4)(*images)
  for i, image in enumerate(zip(*images, strict=True)):
    found = zip(*(x[i][valid[i]].tolist() for x in (indices, scores)), strict=True)
    assert list(found) == definition(*image, 0.4)


def test_guided_by_the_score_itself_it_is_the_greedy_rule():
  boxes, scores, _, classes = (x[0] for x in random_candidates(1))
  indices, valid = class_aware_nms(
    boxes, scores, classes, iou_threshold=0.5, max_outputs=OUTPUTS
  )
  greedy = [(i, float(scores[i])) for i in indices[valid].tolist()]
  assert kept(boxes, scores, scores, classes) == greedy


def test_the_best_placed_box_stays_and_takes_the_best_score():
  boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 9], [30, 0, 40, 10]], np.float32)
  scores, quality = np.array([[0.9, 0.3, 0.5], [0.2, 0.8, 0.1]], np.float32)
  same, other = np.array([4, 4, 4]), np.array([4, 5, 4])
  at = lambda *pairs: [(i, float(scores[j])) for i, j in pairs]
  assert kept(boxes, scores, quality, same, max_outputs=3) == at((1, 0), (2, 2))
  assert kept(boxes, scores, quality, other, max_outputs=3) == at(
    (0, 0), (2, 2), (1, 1)
  )
  assert kept(boxes, scores, quality, same, max_outputs=1) == at((1, 0))


def test_quality_of_any_kind_ends_and_nan_ranks_last():
  boxes = np.tile(np.array([[0, 0, 10, 10]], np.float32), (4, 1))
  boxes[:, 2] += np.arange(4) / 8
  scores, classes = np.array([0.2, 0.9, 0.4, 0.6], np.float32), np.zeros(4, int)
  for quality, first in (
    ([np.nan, 0.5, np.nan, 0.6], 3),
    ([np.nan, -5, np.nan, np.nan], 1),
    ([-np.inf] * 4, 0),
    ([np.nan] * 4, 0),
    ([0.5, np.inf, 3, 0.1], 1),
  ):
    quality = np.array(quality, np.float32)
    assert kept(boxes, scores, quality, classes, 0.5, 4) == [(first, float(scores[1]))]


def test_more_outputs_than_candidates_and_none():
  boxes = np.array([[0, 0, 1, 1], [5, 5, 6, 6]], np.float32)
  scores, classes = np.array([0.25, 0.5], np.float32), np.zeros(2, int)
  assert kept(boxes, scores, scores, classes, 0.5, 5) == [(1, 0.5), (0, 0.25)]
  assert kept(boxes, scores * 0, scores, classes, 0.5, 5) == []
  assert kept(boxes[:0], scores[:0], scores[:0], classes[:0], 0.5, 5) == []


@pytest.mark.parametrize('threshold, outputs', [(-0.1, 5), (1.1, 5), (0.5, 0)])
def test_bad_arguments_are_refused(threshold, outputs):
  boxes, scores, classes = jnp.zeros((2, 4)), jnp.zeros(2), jnp.zeros(2, int)
  numbers = dict(iou_threshold=threshold, max_outputs=outputs)
  with pytest.raises(ValueError, match=f'{threshold}.*{outputs}'):
    iou_guided_nms(boxes, scores, scores, classes, **numbers)


# Voting.


@functools.cache
def compiled_voting(sigma_t):
  return jax.jit(jax.vmap(functools.partial(variance_voting, sigma_t=sigma_t)))


def voted(*arguments, sigma_t=0.01):
  return np.asarray(
    compiled_voting(sigma_t)(*(np.asarray(x)[None] for x in arguments))
  )[0]


def voting_definition(kept_boxes, kept_classes, boxes, scores, classes, std, sigma_t):
  moved = kept_boxes.astype(np.float64)
  for k, box in enumerate(kept_boxes):
    weights, total = np.zeros(4), np.zeros(4)
    for i in range(len(boxes)):
      iou = overlap(box.astype(np.float64), boxes[i].astype(np.float64))
      if scores[i] > 0 and classes[i] == kept_classes[k] and iou > 0:
        p = np.exp(-((1 - iou) ** 2) / sigma_t) / std[i].astype(np.float64) ** 2
        weights, total = weights + p, total + p * boxes[i]
    if weights.any():
      moved[k] = total / weights
  return moved


@pytest.mark.parametrize('sigma_t', [0.01, 0.05, 2.0])
def test_voting_equals_its_definition(sigma_t):
  boxes, scores, _, classes = (x[0] for x in random_candidates(2))
  std = np.random.default_rng(3).uniform(0.05, 4, (COUNT, 4)).astype(np.float32)
  # Of the kept, 4 and 9 are no candidates: one is padding, the other of a third class.
  scores[4], classes[9] = 0, 2
  rows = np.array([3, 0, 4, 9, 11])
  kept_classes = np.where(rows == 9, 5, classes[rows])
  arguments = boxes[rows], kept_classes, boxes, scores, classes, std
  expected = voting_definition(*arguments, sigma_t)
  assert np.abs(expected - boxes[rows]).max() > 0.05
  found = voted(*arguments, sigma_t=sigma_t)
  np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-5)
  np.testing.assert_array_equal(found[3], boxes[9])


def test_two_boxes_vote_by_their_precisions():
  boxes = np.array([[0, 0, 10, 10], [0, 0, 8, 10], [50, 50, 60, 60]], np.float32)
  std = np.array([[1, 1, 2, 1], [1, 1, 1, 1], [1e-6] * 4], np.float32)
  ones, classes = np.ones(3, np.float32), np.zeros(3, int)
  found = voted(boxes[:1], classes[:1], boxes, ones, classes, std, sigma_t=0.02)
  p = np.exp(-(0.2**2) / 0.02)  # the IoU is 0.8
  right = (10 / 4 + 8 * p) / (1 / 4 + p)
  np.testing.assert_allclose(found, [[0, 0, right, 10]], rtol=1e-6)


@pytest.mark.parametrize('spread', [0.0, 1e-30, 1.0, 1e20, np.inf])
def test_equal_deviations_of_any_size_cancel(spread):
  boxes, scores, _, classes = (x[0] for x in random_candidates(5))
  arguments = boxes[:4], classes[:4], boxes, scores, classes
  expected = voting_definition(*arguments, np.ones((COUNT, 4)), 0.05)
  std = np.full((COUNT, 4), spread, np.float32)
  found = voted(*arguments, std, sigma_t=0.05)
  np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-5)


def test_padding_of_any_kind_does_not_vote():
  boxes, scores, _, classes = (x[0] for x in random_candidates(6))
  std = np.ones((COUNT, 4), np.float32)
  scores[10:] = 0
  clean = voted(boxes[:4], classes[:4], boxes, scores, classes, std)
  boxes[10:], std[10:], scores[15:] = np.nan, np.nan, np.nan
  dirty = voted(boxes[:4], classes[:4], boxes, scores, classes, std)
  np.testing.assert_array_equal(clean, dirty)
  fewer = voted(
    boxes[:4], classes[:4], *(x[:10] for x in (boxes, scores, classes, std))
  )
  np.testing.assert_allclose(clean, fewer, rtol=1e-6)


def test_a_box_that_no_candidate_overlaps_stays():
  boxes, scores, _, classes = (x[0] for x in random_candidates(7))
  std, no_area = np.ones((COUNT, 4), np.float32), np.full((1, 4), 5, np.float32)
  np.testing.assert_array_equal(
    voted(no_area, classes[:1], boxes, scores, classes, std), no_area
  )
  nothing = boxes[:0], scores[:0], classes[:0], std[:0]
  np.testing.assert_array_equal(voted(boxes[:3], classes[:3], *nothing), boxes[:3])


@pytest.mark.parametrize('sigma_t', [0.0, -0.01, float('nan')])
def test_voting_without_a_width_is_refused(sigma_t):
  boxes, scores, classes = jnp.zeros((2, 4)), jnp.zeros(2), jnp.zeros(2, int)
  with pytest.raises(ValueError, match=f'sigma_t={sigma_t}'):
    variance_voting(boxes, classes, boxes, scores, classes, boxes, sigma_t=sigma_t)
