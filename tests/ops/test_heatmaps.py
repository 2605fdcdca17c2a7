"""CornerNet's soft labels around centers, on the points of a pyramid."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gfl_jax.ops import boxes as box_ops
from gfl_jax.ops.assignment import atss, center_heatmap
from gfl_jax.ops.points import level_slices, make_points

SIZE, STRIDES, COUNT, CLASSES = (104, 136), (8, 16, 32), 6, 3
POINTS = make_points(SIZE, STRIDES)


@functools.cache
def compiled(min_overlap=0.7):
  draw = lambda boxes, labels, valid, matched: center_heatmap(
    boxes, labels, valid, matched, POINTS, CLASSES, min_overlap=min_overlap
  )
  return jax.jit(jax.vmap(draw))


def drawn(boxes, labels, valid, matched, min_overlap=0.7):
  batch = [np.asarray(x)[None] for x in (boxes, labels, valid, matched)]
  return np.asarray(compiled(min_overlap)(*batch)[0])


def scene(seed, count):
  """Boxes, labels and flags with padding, and what ATSS gives each."""
  rng = np.random.default_rng(seed)
  centers = rng.uniform(0, SIZE[::-1], (COUNT, 2))
  half_sizes = np.exp(rng.uniform(1, 4, (COUNT, 2)))
  boxes = np.concatenate([centers - half_sizes, centers + half_sizes], axis=1)
  boxes, valid = boxes.astype(np.float32), np.arange(COUNT) < count
  boxes[~valid] = np.nan
  labels = np.where(valid, rng.integers(0, CLASSES, COUNT), -1)
  return boxes, labels, valid, np.array(matched_by_atss(boxes, valid))


@jax.jit
def matched_by_atss(boxes, valid):
  return atss(boxes, valid, POINTS).matched


def definition(boxes, labels, valid, matched, min_overlap=0.7):
  heatmap = np.zeros((len(POINTS.centers), CLASSES))
  for g in np.flatnonzero(valid):
    middle = (boxes[g, :2] + boxes[g, 2:]) / 2
    for part, (rows, columns) in zip(
      level_slices(POINTS), POINTS.level_sizes, strict=True
    ):
      own = [i for i in range(part.start, part.stop) if matched[i] == g]
      if not own:
        continue
      peak = min(own, key=lambda i: np.sum((POINTS.centers[i] - middle) ** 2))
      peak_row, peak_column = divmod(peak - part.start, columns)
      sides = (boxes[g, 2:] - boxes[g, :2]).astype(float) / POINTS.strides[peak]
      sigma = (2 * radius_by_search(*sides, min_overlap) + 1) / 6
      for i in range(rows * columns):
        row, column = divmod(i, columns)
        squared = (row - peak_row) ** 2 + (column - peak_column) ** 2
        value = np.exp(-squared / (2 * sigma**2))
        at = part.start + i, labels[g]
        heatmap[at] = max(heatmap[at], value)
  return heatmap


def radius_by_search(width, height, min_overlap):
  """The largest radius at which all three changes of the box keep their IoU."""

  def keeps(r):
    whole = width * height
    moved = max(width - r, 0) * max(height - r, 0)
    shrunk = max(width - 2 * r, 0) * max(height - 2 * r, 0)
    grown = (width + 2 * r) * (height + 2 * r)
    ious = moved / (2 * whole - moved), shrunk / whole, whole / grown
    return min(ious) >= min_overlap

  low, high = 0.0, width + height
  for _ in range(60):
    middle = (low + high) / 2
    low, high = (middle, high) if keeps(middle) else (low, middle)
  return low


# The radius.


@pytest.mark.parametrize('min_overlap', [0.05, 0.3, 0.7, 0.99])
def test_radius_is_the_largest_that_keeps_the_overlap(min_overlap):
  sides = np.random.default_rng(0).uniform(0.1, 90, (20, 2)).astype(np.float32)
  radius = box_ops.corner_radius(sides, min_overlap=min_overlap)
  expected = [radius_by_search(*pair, min_overlap) for pair in sides.astype(float)]
  np.testing.assert_allclose(radius, expected, rtol=1e-5)


def test_radius_of_a_square_is_the_smallest_of_three():
  # Grown by r on all sides the IoU is (10 / (10 + 2 r))^2, shrunk ((10 - 2 r) / 10)^2,
  # moved on both axes q / (200 - q) with q = (10 - r)^2.
  for min_overlap in (0.2, 0.7):
    grown = 5 * (min_overlap**-0.5 - 1)
    shrunk = 5 * (1 - min_overlap**0.5)
    moved = 10 * (1 - (2 * min_overlap / (1 + min_overlap)) ** 0.5)
    radius = box_ops.corner_radius(np.full((1, 2), 10.0), min_overlap=min_overlap)
    np.testing.assert_allclose(radius, [min(grown, shrunk, moved)], rtol=1e-6)


def test_radius_of_no_side_is_0():
  sides = np.array([[0, 0], [0, 9], [-3, 9], [-3, -3]], np.float32)
  np.testing.assert_array_equal(
    box_ops.corner_radius(sides, min_overlap=0.7), np.zeros(4)
  )


# The heatmap.


@pytest.mark.parametrize(
  'seed, count, min_overlap', [(0, 6, 0.7), (1, 5, 0.7), (2, 6, 0.3), (3, 1, 0.9)]
)
def test_heatmap_equals_its_definition(seed, count, min_overlap):
  image = scene(seed, count)
  expected = definition(*image, min_overlap=min_overlap)
  found = drawn(*image, min_overlap)
  np.testing.assert_allclose(found, expected, rtol=2e-4, atol=1e-7)
  np.testing.assert_array_equal(found == 1, expected == 1)
  assert (found == 1).any()


def test_one_box_by_hand():
  # Center (68, 48): points 64 and 72 of stride 8 are equally near, the first is peak.
  boxes, valid = np.full((COUNT, 4), (58, 38, 78, 58), np.float32), np.arange(COUNT) < 1
  labels, matched = np.full(COUNT, 2), np.full(len(POINTS.centers), -1)
  matched[::7] = -2
  near = [
    np.flatnonzero((POINTS.centers == at).all(1))[0] for at in ((64, 48), (72, 48))
  ]
  matched[near] = 0
  found = drawn(boxes, labels, valid, matched)
  assert not found[:, :2].any()
  fine = found[level_slices(POINTS)[0], 2].reshape(POINTS.level_sizes[0])
  assert fine[6, 8] == 1 and (fine == 1).sum() == 1
  # 2.5 cells wide: r = 2.5 (1 - sqrt(0.7)) / 2 of shrinking is the smallest.
  sigma = (2.5 * (1 - 0.7**0.5) + 1) / 6
  np.testing.assert_allclose(fine[6, 9], np.exp(-1 / (2 * sigma**2)), rtol=1e-4)
  np.testing.assert_allclose(fine[5, 7], fine[6, 9] ** 2, rtol=1e-4)
  assert not found[level_slices(POINTS)[0].stop :].any()


def test_boxes_of_a_class_share_its_map_and_others_do_not():
  boxes, _, _, matched = scene(4, COUNT)
  valid = np.ones(COUNT, bool)
  alone = [
    drawn(boxes, np.zeros(COUNT, int), np.arange(COUNT) == g, matched)[:, 0]
    for g in range(COUNT)
  ]
  labels = np.array([0, 1, 0, 1, 1, 0])
  together = drawn(boxes, labels, valid, matched)
  for label in (0, 1):
    expected = np.max([alone[g] for g in np.flatnonzero(labels == label)], axis=0)
    np.testing.assert_array_equal(together[:, label], expected)
  assert not together[:, 2].any()


def test_place_of_the_padding_does_not_matter():
  boxes, labels, valid, matched = scene(5, 4)
  order = np.array([5, 3, 0, 4, 2, 1])
  new_index = np.argsort(order)
  moved = np.where(matched < 0, matched, new_index[matched])
  np.testing.assert_array_equal(
    drawn(boxes, labels, valid, matched),
    drawn(boxes[order], labels[order], valid[order], moved),
  )


def test_images_of_a_batch_are_independent():
  images = [scene(6, 6), scene(7, 3), scene(8, 0)]
  batched = compiled()(*(np.stack(x) for x in zip(*images, strict=True)))
  for image, found in zip(images, batched, strict=True):
    np.testing.assert_array_equal(found, drawn(*image))


def test_without_boxes_all_is_0():
  matched = np.full(len(POINTS.centers), -1)
  for boxes in (np.ones((COUNT, 4), np.float32), np.zeros((0, 4), np.float32)):
    flags = np.zeros(len(boxes), bool)
    found = drawn(boxes, np.zeros(len(boxes), int), flags, matched)
    assert found.shape == (len(matched), CLASSES) and not found.any()
  # Nor is a box that no anchor learns to be seen.
  flags = np.ones(COUNT, bool)
  found = drawn(np.ones((COUNT, 4), np.float32), np.zeros(COUNT, int), flags, matched)
  assert not found.any()


# Bad input.


def test_arguments_that_do_not_fit_are_refused():
  boxes, labels, valid, matched = scene(0, 2)
  arguments = boxes, labels, valid, jnp.asarray(matched), POINTS
  for bad in (0.0, 1.0, float('nan')):
    with pytest.raises(ValueError, match=f'min_overlap={bad}'):
      center_heatmap(*arguments, CLASSES, min_overlap=bad)
    with pytest.raises(ValueError, match=f'min_overlap={bad}'):
      box_ops.corner_radius(np.ones((1, 2), np.float32), min_overlap=bad)
  with pytest.raises(ValueError, match='num_classes=0'):
    center_heatmap(*arguments, 0)
  with pytest.raises(ValueError, match=r'labels.shape=\(5,\)'):
    center_heatmap(boxes, labels[:5], valid, matched, POINTS, CLASSES)
  with pytest.raises(ValueError, match=r'valid.shape=\(5,\)'):
    center_heatmap(boxes, labels[:5], valid[:5], matched, POINTS, CLASSES)
  with pytest.raises(ValueError, match=r'matched.shape=\(9,\)'):
    center_heatmap(boxes, labels, valid, matched[:9], POINTS, CLASSES)
