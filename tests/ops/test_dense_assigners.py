"""FCOS's and RetinaNet's rules against loops that read as their definitions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gfl_jax.ops.assignment import fcos, max_iou
from gfl_jax.ops.points import level_slices, make_points, point_validity

SIZE, STRIDES, COUNT = (104, 136), (8, 16, 32), 8
ASSIGNERS = (fcos, max_iou)


@functools.cache
def compiled(assigner, size=SIZE, strides=STRIDES, **numbers):
  """Points and the assigner of a batch of images, on the part of it that is theirs."""
  points = make_points(size, strides)

  def assign(boxes, valid, size):
    point_valid = point_validity(points, size)
    return assigner(boxes, valid, points, point_valid=point_valid, **numbers)

  return points, jax.jit(jax.vmap(assign))


def assigned(assigner, boxes, valid, image_size=SIZE, **numbers):
  _, assign = compiled(assigner, **numbers)
  matched, iou = assign(boxes[None], valid[None], np.array([image_size]))
  return np.asarray(matched[0]), np.asarray(iou[0])


def padded(boxes, count=COUNT):
  """Boxes and their flags, with padding of kinds that must not matter."""
  boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
  padding = np.full((count - len(boxes), 4), (-50, -50, 400, 300), np.float32)
  padding[::2] = np.nan
  return np.concatenate([boxes, padding]), np.arange(count) < len(boxes)


def level_of(points):
  parts = level_slices(points)
  return np.repeat(np.arange(len(parts)), [part.stop - part.start for part in parts])


def overlap(a, b):
  low, high = np.maximum(a[:2], b[:2]), np.minimum(a[2:], b[2:])
  intersection = np.prod(np.maximum(high - low, 0))
  area = lambda box: (box[2] - box[0]) * (box[3] - box[1])
  return intersection / np.maximum(area(a) + area(b) - intersection, 1e-6)


# The definitions, written down as they read.


def fcos_definition(boxes, points, point_valid, regress_range, center_radius):
  matched = np.where(point_valid, -1, -2)
  top = len(points.level_sizes) - 1
  for i, level in enumerate(level_of(points)):
    x, y = points.centers[i]
    stride = points.strides[i]
    best_area = np.inf
    for g, (x1, y1, x2, y2) in enumerate(boxes):
      left, up, right, down = x1, y1, x2, y2
      if center_radius:
        middle_x, middle_y = (x1 + x2) / 2, (y1 + y2) / 2
        left = max(left, middle_x - center_radius * stride)
        up = max(up, middle_y - center_radius * stride)
        right = min(right, middle_x + center_radius * stride)
        down = min(down, middle_y + center_radius * stride)
      if not (left < x < right and up < y < down):
        continue
      farthest = max(x - x1, y - y1, x2 - x, y2 - y)
      if level > 0 and farthest < regress_range * STRIDES[level - 1]:
        continue
      if level < top and farthest > regress_range * stride:
        continue
      area = (x2 - x1) * (y2 - y1)
      if area < best_area and point_valid[i]:
        matched[i], best_area = g, area
  return matched


def max_iou_definition(boxes, points, point_valid, positive_iou, negative_iou):
  """Assignment by mmdet's loop, to boxes that contain the point, and how near its
  closest decision was."""
  num_points = len(point_valid)
  matched, margin = np.where(point_valid, -1, -2), np.inf
  if not len(boxes):
    return matched, margin
  iou = np.array([[overlap(box, anchor) for anchor in points.anchors] for box in boxes])
  iou[:, ~point_valid] = -1
  own = np.full_like(iou, -1)
  for g, (x1, y1, x2, y2) in enumerate(boxes):
    for i, (x, y) in enumerate(points.centers):
      room = min(x - x1, x2 - x, y - y1, y2 - y)
      margin = min(margin, abs(room - 0.01))
      if room > 0.01:
        own[g, i] = iou[g, i]
  for i in range(num_points):
    if not point_valid[i]:
      continue
    best = own[:, i].argmax()
    if own[best, i] >= positive_iou:
      matched[i] = best
    elif iou[:, i].max() >= negative_iou:
      matched[i] = -2
    near = np.sort(own[:, i])[-2:]
    margin = min(
      margin, abs(near[-1] - positive_iou), abs(iou[:, i].max() - negative_iou)
    )
    if near[-1] >= positive_iou and len(near) > 1 and near[0] < near[1]:
      margin = min(margin, near[1] - near[0])
  for g in range(len(boxes)):
    if own[g].max() > 0:
      matched[np.isclose(own[g], own[g].max(), rtol=1e-9, atol=0)] = g
      others = own[g][~np.isclose(own[g], own[g].max(), rtol=1e-9, atol=0)]
      margin = min(margin, (own[g].max() - others.max()) / own[g].max())
  return matched, margin


def check_iou(points, boxes, matched, iou):
  expected = [
    overlap(boxes[g], anchor) if g >= 0 else 0
    for g, anchor in zip(matched, points.anchors, strict=True)
  ]
  np.testing.assert_allclose(iou, expected, rtol=1e-5, atol=1e-7)


# Quarters of a pixel: all distances and areas are exact in float32, so that points on a
# border and equal areas are so in both programs.
quarters = lambda low, high: st.integers(low * 4, high * 4).map(lambda q: q / 4)


@st.composite
def any_boxes(draw):
  boxes = []
  for _ in range(draw(st.integers(0, COUNT - 1))):
    x, y = draw(quarters(-20, 120)), draw(quarters(-20, 90))
    sizes = st.sampled_from([2, 20, 64, 200]).flatmap(lambda n: quarters(0, n))
    boxes.append((x, y, x + draw(sizes) + 0.25, y + draw(sizes) + 0.25))
  if boxes and draw(st.booleans()):
    boxes.append(boxes[0])
  return boxes


@pytest.mark.parametrize(
  'regress_range, center_radius', [(8.0, 1.5), (2.0, 1.5), (2.0, 0.0), (3.0, 0.5)]
)
@settings(max_examples=20, deadline=None)
@given(
  boxes=any_boxes(), image_size=st.sampled_from([SIZE, (60, 136), (104, 33), (0, 0)])
)
def test_fcos_equals_its_definition(regress_range, center_radius, boxes, image_size):
  boxes, valid = padded(boxes)
  numbers = dict(regress_range=regress_range, center_radius=center_radius)
  points, _ = compiled(fcos, **numbers)
  on_image = np.asarray(point_validity(points, np.array(image_size)))
  matched, iou = assigned(fcos, boxes, valid, image_size, **numbers)
  expected = fcos_definition(boxes[valid], points, on_image, **numbers)
  np.testing.assert_array_equal(matched, expected)
  check_iou(points, boxes, matched, iou)


def random_boxes(seed, count, size=SIZE):
  rng = np.random.default_rng(seed)
  centers = rng.uniform(0, size[::-1], (count, 2))
  half_sizes = np.exp(rng.uniform(1, np.log(min(size)), (count, 2)))
  boxes = np.concatenate([centers - half_sizes, centers + half_sizes], axis=1)
  return boxes.astype(np.float32)


# No box reaches an IoU above 0.5 with an anchor whose point is outside.
@pytest.mark.parametrize('thresholds', [(0.5, 0.4), (0.3, 0.2)])
@pytest.mark.parametrize('seed', range(8))
def test_max_iou_equals_its_definition(seed, thresholds):
  boxes, valid = padded(random_boxes(seed, seed))
  image_size = [SIZE, (60, 136), (104, 33)][seed % 3]
  numbers = dict(zip(('positive_iou', 'negative_iou'), thresholds, strict=True))
  points, _ = compiled(max_iou, **numbers)
  on_image = np.asarray(point_validity(points, np.array(image_size)))
  matched, iou = assigned(max_iou, boxes, valid, image_size, **numbers)
  expected, margin = max_iou_definition(boxes[valid], points, on_image, *thresholds)
  assert margin > 3e-6
  np.testing.assert_array_equal(matched, expected)
  check_iou(points, boxes, matched, iou)


def test_a_crowd_equals_the_definitions():
  crowd = {'size': (256, 320), 'strides': STRIDES}
  boxes, valid = padded(random_boxes(11, 90, (256, 320)), 100)
  batch = boxes[None], valid[None], np.array([[256, 300]])
  points, assign = compiled(fcos, **crowd)
  on_image = np.asarray(point_validity(points, batch[2][0]))
  matched = np.asarray(assign(*batch).matched[0])
  expected = fcos_definition(boxes[valid], points, on_image, 8.0, 1.5)
  np.testing.assert_array_equal(matched, expected)
  assert all((level_of(points)[matched >= 0] == level).any() for level in range(3))

  points, assign = compiled(max_iou, **crowd)
  matched = np.asarray(assign(*batch).matched[0])
  expected, margin = max_iou_definition(boxes[valid], points, on_image, 0.5, 0.4)
  assert margin > 1e-6
  np.testing.assert_array_equal(matched, expected)
  assert len(np.unique(matched)) > 60 and (matched[on_image] == -2).any()


# Invariances.


@pytest.mark.parametrize('assigner', ASSIGNERS)
def test_images_of_a_batch_are_independent(assigner):
  images = [padded(random_boxes(seed, count)) for seed, count in ((0, 2), (1, 7))]
  boxes, valid = (np.stack(x) for x in zip(*images, strict=True))
  _, assign = compiled(assigner)
  sizes = np.array([SIZE, (60, 90)])
  batched = assign(boxes, valid, sizes)
  for i, image in enumerate(images):
    alone = assigned(assigner, *image, sizes[i])
    for part, expected in zip(batched, alone, strict=True):
      np.testing.assert_array_equal(part[i], expected)


@pytest.mark.parametrize('assigner', ASSIGNERS)
def test_place_of_the_padding_does_not_matter(assigner):
  boxes, valid = padded(random_boxes(2, 5))
  matched, iou = assigned(assigner, boxes, valid)
  assert (matched >= 0).any()
  # The order of the real ones stays: of two that claim an anchor the last has it.
  order = np.array([7, 0, 6, 1, 2, 5, 3, 4])
  moved, same_iou = assigned(assigner, boxes[order], valid[order])
  np.testing.assert_array_equal(iou, same_iou)
  np.testing.assert_array_equal(matched, np.where(moved < 0, moved, order[moved]))


def test_order_of_the_boxes_does_not_matter_to_fcos():
  boxes, valid = padded(random_boxes(2, 7))
  order = np.random.default_rng(0).permutation(COUNT)
  matched, _ = assigned(fcos, boxes, valid)
  shuffled, _ = assigned(fcos, boxes[order], valid[order])
  np.testing.assert_array_equal(
    matched, np.where(shuffled < 0, shuffled, order[shuffled])
  )


@pytest.mark.parametrize('assigner', ASSIGNERS)
def test_without_boxes_all_is_background_or_ignored(assigner):
  points, _ = compiled(assigner)
  on_image = np.asarray(point_validity(points, np.array([60, 136])))
  for count in (COUNT, 0):
    matched, iou = assigned(assigner, *padded([], count), (60, 136))
    np.testing.assert_array_equal(matched, np.where(on_image, -1, -2))
    assert not iou.any()


# FCOS, one rule each.


def points_that_learn(box, stride, **numbers):
  boxes, valid = padded([box])
  points, _ = compiled(fcos, **numbers)
  matched, _ = assigned(fcos, boxes, valid, **numbers)
  found = points.centers[(matched >= 0) & (points.strides == stride)]
  return sorted(map(tuple, found.tolist()))


def test_fcos_takes_the_points_around_the_center_not_those_on_the_edge_of_it():
  # Center (40, 40), 1.5 strides of 8: 28 to 52. Half a stride: 36 to 44.
  around = [(x, y) for x in (32, 40, 48) for y in (32, 40, 48)]
  assert points_that_learn((8, 8, 72, 72), 8) == around
  assert points_that_learn((8, 8, 72, 72), 8, center_radius=0.5) == [(40, 40)]
  assert points_that_learn((8, 8, 72, 72), 8, center_radius=1.0) == [(40, 40)]
  # Clipped to the box, whose sides points must not lie on either.
  assert points_that_learn((32, 36, 48, 44), 8) == [(40, 40)]


def test_fcos_without_center_sampling_takes_all_points_inside_strictly():
  inside = [(x, y) for x in (16, 24, 32) for y in (24, 32)]
  assert points_that_learn((8, 16, 40, 40), 8, center_radius=0.0) == inside


@pytest.mark.parametrize('excess, strides', [(0, {8, 16}), (-0.25, {8}), (0.25, {16})])
def test_fcos_ranges_hold_both_their_ends(excess, strides):
  # The point (64, 48) is on both levels; its farthest side is 64 px away.
  boxes, valid = padded([(60, 40, 128 + excess, 56)])
  points, _ = compiled(fcos, center_radius=0.0)
  matched, _ = assigned(fcos, boxes, valid, center_radius=0.0)
  at_point = (points.centers == (64, 48)).all(axis=1)
  assert set(points.strides[at_point & (matched == 0)]) == strides


def test_fcos_gives_an_ambiguous_point_to_the_smaller_box_and_then_to_the_first():
  large, small, same = (20, 20, 60, 60), (24, 28, 52, 56), (28, 24, 56, 52)
  points, _ = compiled(fcos)
  point = np.flatnonzero((points.centers == (40, 40)).all(axis=1))[0]
  for order in ([large, small, same], [small, same, large], [same, large, small]):
    boxes, valid = padded(order)
    matched, iou = assigned(fcos, boxes, valid)
    assert order[matched[point]] == next(box for box in order if box != large)
    np.testing.assert_allclose(iou[point], 28 * 28 / 64**2, rtol=1e-6)


# RetinaNet, one rule each.


def test_max_iou_keeps_a_band_between_its_thresholds():
  # Anchors of stride 8 are 64 px wide; the box is one of them, so that its neighbors'
  # IoUs are 7/9 = 0.778, 6/10 = 0.6, 5/11 = 0.455, 4/12 = 0.333 and so on.
  points = make_points((8, 136), (8,))
  boxes, valid = padded([points.anchors[4]])
  assign = jax.jit(lambda boxes, valid: max_iou(boxes, valid, points))
  matched, iou = assign(boxes, valid)
  ignored = [i for i in range(len(matched)) if abs(i - 4) == 3]
  background = [i for i in range(len(matched)) if abs(i - 4) > 3]
  expected = np.zeros(len(matched))
  expected[ignored], expected[background] = -2, -1
  np.testing.assert_array_equal(matched, expected)
  np.testing.assert_allclose(iou[4:8], [1, 7 / 9, 6 / 10, 0], rtol=1e-6)


def test_max_iou_gives_a_small_box_all_of_its_equal_best_anchors_with_points_in_it():
  # IoU 256 / 4096 with 36 anchors of stride 8 around it, far below both thresholds.
  box = (60, 44, 76, 60)
  boxes, valid = padded([box])
  points, _ = compiled(max_iou)
  matched, iou = assigned(max_iou, boxes, valid)
  best = np.isclose([overlap(box, anchor) for anchor in points.anchors], 1 / 16)
  inside = [(x, y) for y in (48, 56) for x in (64, 72)]
  assert best.sum() == 36
  assert list(map(tuple, points.centers[matched == 0])) == inside
  assert (matched >= 0).sum() == 4 and best[matched == 0].all()
  np.testing.assert_allclose(iou, np.where(matched == 0, 1 / 16, 0), rtol=1e-6)


def test_max_iou_ignores_an_anchor_near_a_box_that_its_point_is_not_in():
  # The box is the right half of the anchor at (64, 48), but for `gap` px.
  points, _ = compiled(max_iou, positive_iou=0.4, negative_iou=0.3)
  anchor = np.flatnonzero((points.centers == (64, 48)).all(axis=1))[0]
  for gap, expected in ((-0.02, 0), (-0.005, -2), (2, -2)):
    boxes, valid = padded([(64 + gap, 16, 96, 80)])
    numbers = dict(positive_iou=0.4, negative_iou=0.3)
    matched, iou = assigned(max_iou, boxes, valid, **numbers)
    assert overlap(boxes[0], points.anchors[anchor]) > 0.45
    assert matched[anchor] == expected and (iou[anchor] > 0) == (expected == 0)
    assert (points.centers[matched == 0] > (64 + gap, 16)).all()


def test_max_iou_gives_an_anchor_the_better_of_the_boxes_that_contain_its_point():
  # The anchor at (64, 48) overlaps the first box more, but its point is not in it; the
  # second has a better anchor.
  numbers = dict(positive_iou=0.4, negative_iou=0.3)
  points, _ = compiled(max_iou, **numbers)
  anchor = np.flatnonzero((points.centers == (64, 48)).all(axis=1))[0]
  boxes, valid = padded([(65, 16, 96, 80), (40, 4, 84, 60)])
  first, second = (overlap(box, points.anchors[anchor]) for box in boxes[valid])
  assert first > second > 0.4
  matched, iou = assigned(max_iou, boxes, valid, **numbers)
  assert matched[anchor] == 1
  np.testing.assert_allclose(iou[anchor], second, rtol=1e-6)


def test_max_iou_lets_the_last_box_take_an_anchor_from_a_better_one():
  points, _ = compiled(max_iou)
  anchor = np.flatnonzero((points.centers == (64, 48)).all(axis=1))[0]
  exact, poor = points.anchors[anchor], (52, 36, 76, 60)
  for order in ([exact, poor], [poor, exact]):
    boxes, valid = padded(order)
    matched, iou = assigned(max_iou, boxes, valid)
    assert matched[anchor] == 1
    np.testing.assert_allclose(iou[anchor], overlap(boxes[1], exact), rtol=1e-6)


@pytest.mark.parametrize('box', [(-900, -900, -800, -800), (65, 49, 71, 55)])
def test_max_iou_gives_no_anchor_to_a_box_without_a_point(box):
  boxes, valid = padded([box])
  matched, _ = assigned(max_iou, boxes, valid)
  np.testing.assert_array_equal(matched, np.full(len(matched), -1))


# Bad input.


@pytest.mark.parametrize('assigner', ASSIGNERS)
def test_sizes_that_differ_are_refused(assigner):
  points = make_points((64, 64), (8,))
  boxes, valid = jnp.zeros((3, 4)), jnp.zeros(3, bool)
  with pytest.raises(ValueError, match=r'valid.shape=\(2,\)'):
    assigner(boxes, valid[:2], points)
  with pytest.raises(ValueError, match=r'point_valid.shape=\(63,\).*64'):
    assigner(boxes, valid, points, point_valid=jnp.ones(63, bool))


@pytest.mark.parametrize(
  'assigner, numbers',
  [
    (fcos, {'regress_range': 0.0}),
    (fcos, {'regress_range': float('nan')}),
    (fcos, {'center_radius': -1.5}),
    (max_iou, {'positive_iou': 0.3}),
    (max_iou, {'positive_iou': 1.5}),
    (max_iou, {'negative_iou': -0.1}),
    (max_iou, {'positive_iou': 0.0, 'negative_iou': 0.0}),
  ],
)
def test_numbers_outside_their_bounds_are_refused(assigner, numbers):
  points = make_points((64, 64), (8,))
  name, value = next(iter(numbers.items()))
  with pytest.raises(ValueError, match=f'{name}={value}'):
    assigner(jnp.zeros((3, 4)), jnp.zeros(3, bool), points, **numbers)
