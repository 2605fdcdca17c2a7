import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from gfl_jax.ops import boxes as box_ops
from gfl_jax.ops.assignment import atss
from gfl_jax.ops.points import level_slices, make_points, point_validity
from tests import golden

GOLDEN = golden.load('assigner')
NAMES, TIES = GOLDEN['case_names'].tolist(), GOLDEN['case_tie']
STRIDES = (8, 16, 32, 64, 128)


@functools.cache
def compiled(image_size, strides=STRIDES, offset=0.0, top_k=9):
  points = make_points(image_size, strides, offset=offset)

  def assign(boxes, valid, size):
    point_valid = point_validity(points, size)
    return atss(boxes, valid, points, top_k=top_k, point_valid=point_valid)

  return points, jax.jit(assign)


def padded(boxes, count):
  """Boxes and their flags, with padding of a kind that must not matter."""
  boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
  padding = np.full((count - len(boxes), 4), (-50, 30, 400, 300), np.float32)
  return np.concatenate([boxes, padding]), np.arange(count) < len(boxes)


def golden_case(name):
  prefix = f'case{NAMES.index(name):02}/'
  return {k.removeprefix(prefix): v for k, v in GOLDEN.items() if k.startswith(prefix)}


def golden_assignment(case):
  points, assign = compiled(tuple(case['batch_shape'].tolist()))
  boxes, valid = padded(case['gt_boxes'], 64)
  return points, assign(boxes, valid, case['img_shape'])


# Parity with the authors' code.


@pytest.mark.parametrize(
  'name', [n for n, tie in zip(NAMES, TIES, strict=True) if not tie]
)
def test_atss_equals_the_authors(name):
  case = golden_case(name)
  _, (matched, iou) = golden_assignment(case)
  np.testing.assert_array_equal(matched, case['assigned_gt'] - 1)
  expected = np.zeros(len(iou), np.float32)
  expected[case['pos_index']] = case['pos_iou']
  np.testing.assert_allclose(iou, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize('name', [n for n, tie in zip(NAMES, TIES, strict=True) if tie])
def test_atss_differs_from_the_authors_only_in_ties(name):
  case = golden_case(name)
  points, (matched, _) = golden_assignment(case)
  matched, expected = np.asarray(matched), case['assigned_gt'] - 1
  np.testing.assert_array_equal(matched == -2, expected == -2)
  boxes = case['gt_boxes']
  ours, theirs = (explained(m, boxes, points) for m in (matched, expected))
  assert ours == theirs


def test_a_batch_equals_the_authors():
  # Several shapes of images on the canvas of the largest.
  names = [NAMES[i] for i in GOLDEN['batch/case_ids']]
  cases = [golden_case(name) for name in names]
  canvas = np.max([case['pad_shape'] for case in cases], axis=0)
  points, assign = compiled(tuple(canvas.tolist()))
  images = [padded(case['gt_boxes'], 64) for case in cases]
  boxes, valid = (np.stack(x) for x in zip(*images, strict=True))
  sizes = np.stack([case['img_shape'] for case in cases])
  matched, _ = jax.jit(jax.vmap(assign))(boxes, valid, sizes)
  for level, part in enumerate(level_slices(points)):
    found, background = matched[:, part], 80
    labels = np.full(found.shape, background)
    for image, case in enumerate(cases):
      positive = np.flatnonzero(found[image] >= 0)
      labels[image, positive] = case['gt_labels'][found[image, positive]]
    np.testing.assert_array_equal(labels, GOLDEN[f'batch/labels_level{level}'])
    np.testing.assert_array_equal(
      found != -2, GOLDEN[f'batch/label_weights_level{level}']
    )
  num_positives = np.sum(matched >= 0, axis=1)
  assert np.maximum(num_positives, 1).sum() == GOLDEN['batch/avg_factor']


def explained(matched, boxes, points):
  """What any way to break ties leaves: distances of positives, per box and level."""
  centers = (boxes[:, :2] + boxes[:, 2:]) / 2
  # Duplicates count as one box.
  names = [tuple(box) for box in boxes.tolist()]
  found = [
    (names[box], points.strides[i], np.linalg.norm(points.centers[i] - centers[box]))
    for i, box in enumerate(matched)
    if box >= 0
  ]
  return sorted(found)


# The definition, written down as it reads.


def definition(boxes, points, point_valid, top_k):
  """Assignment by brute force, and how near its closest decision on IoU was."""
  matched = np.where(point_valid, -1, -2)
  best = np.zeros(len(point_valid), np.float32)
  margin = np.inf
  for g, box in enumerate(boxes):
    iou = np.asarray(pairwise_iou(box, points.anchors))
    center = (box[:2] + box[2:]) / 2
    distance = np.sum((points.centers - center) ** 2, axis=1)
    candidates = []
    for stride in np.unique(points.strides):
      level = np.flatnonzero((points.strides == stride) & point_valid)
      candidates += level[np.argsort(distance[level], kind='stable')][:top_k].tolist()
    if not candidates:
      continue
    values = iou[candidates].astype(np.float64)
    threshold = values.mean() + (values.std(ddof=1) if len(values) > 1 else 0)
    for i in candidates:
      x, y = points.centers[i]
      if min(x - box[0], y - box[1], box[2] - x, box[3] - y) <= 0.01:
        continue
      margin = min(margin, abs(iou[i] - threshold)) if len(values) > 1 else margin
      if iou[i] >= threshold and iou[i] > best[i] * (1 + 1e-6):
        matched[i], best[i] = g, iou[i]
  return matched, best, margin


def pairwise_iou(box, anchors):
  low, high = np.maximum(box[:2], anchors[:, :2]), np.minimum(box[2:], anchors[:, 2:])
  intersection = np.prod(np.maximum(high - low, 0), axis=1)
  area = lambda b: (b[..., 2] - b[..., 0]) * (b[..., 3] - b[..., 1])
  return intersection / np.maximum(area(box) + area(anchors) - intersection, 1e-6)


# Quarters of a pixel: every distance and area below is exact in float32, so that ties
# are ties in both programs.
quarters = lambda low, high: st.integers(low * 4, high * 4).map(lambda q: q / 4)


@st.composite
def any_boxes(draw, height, width):
  boxes = []
  for _ in range(draw(st.integers(0, 5))):
    # Across the border too, and far outside; tiny, huge, thin.
    x, y = draw(quarters(-40, width + 40)), draw(quarters(-40, height + 40))
    sizes = st.sampled_from([1, 4, 20, 64, 200]).flatmap(lambda n: quarters(0, n))
    boxes.append((x, y, x + draw(sizes) + 0.25, y + draw(sizes) + 0.25))
  if boxes and draw(st.booleans()):
    boxes.append(boxes[0])
  return boxes


@pytest.mark.parametrize(
  'image_size, strides, offset, top_k',
  [
    ((104, 136), (8, 16, 32), 0.0, 9),
    ((40, 200), (8, 32), 0.5, 9),  # 5 x 25 and 2 x 7 cells
    ((8, 200), (8, 64), 0.0, 9),  # one row
    ((120, 16), (8, 16), 0.25, 9),  # two columns, one column
    ((16, 16), (8, 16, 32), 0.0, 9),  # fewer cells than candidates
    ((104, 136), (8, 16), 0.0, 1),
    ((104, 136), (8, 16), 0.5, 4),
    ((136, 104), (8, 16), 0.0, 25),
    ((72, 104), (8, 32), 0.25, 40),
  ],
)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_atss_equals_its_definition(image_size, strides, offset, top_k, data):
  points, assign = compiled(image_size, strides, offset, top_k)
  boxes, valid = padded(data.draw(any_boxes(*image_size)), 6)
  size = np.array([data.draw(st.integers(0, n)) for n in image_size], np.int32)
  point_valid = np.asarray(point_validity(points, size))
  expected = definition(boxes[valid], points, point_valid, top_k)
  assume(expected[2] > 1e-6)
  matched, iou = assign(boxes, valid, size)
  np.testing.assert_array_equal(matched, expected[0])
  np.testing.assert_allclose(iou, expected[1], rtol=1e-6)


# Invariances.


def random_boxes(seed, count, height=256, width=320):
  rng = np.random.default_rng(seed)
  centers = rng.uniform(0, (width, height), (count, 2))
  half_sizes = np.exp(rng.uniform(1, 5, (count, 2)))
  return np.concatenate([centers - half_sizes, centers + half_sizes], axis=1)


def test_images_of_a_batch_are_independent():
  points, assign = compiled((256, 320))
  images = [padded(random_boxes(seed, count), 64) for seed, count in ((0, 3), (1, 40))]
  sizes = np.array([[256, 320], [130, 190]], np.int32)
  boxes, valid = (np.stack(x) for x in zip(*images, strict=True))
  batched = jax.jit(jax.vmap(assign))(boxes, valid, sizes)
  alone = [assign(*image) for image in zip(boxes, valid, sizes, strict=True)]
  stacked = jax.tree.map(lambda *x: np.stack(x), *alone)
  jax.tree.map(np.testing.assert_array_equal, batched, stacked)


def test_order_of_the_boxes_and_place_of_the_padding_do_not_matter():
  _, assign = compiled((256, 320))
  boxes, valid = padded(random_boxes(2, 30), 64)
  matched, iou = assign(boxes, valid, np.array([256, 320]))
  order = np.random.default_rng(0).permutation(64)
  shuffled, same_iou = assign(boxes[order], valid[order], np.array([256, 320]))
  np.testing.assert_array_equal(iou, same_iou)
  np.testing.assert_array_equal(
    matched, np.where(shuffled < 0, shuffled, order[shuffled])
  )


def test_iou_is_that_of_the_anchor_with_its_box():
  points, assign = compiled((256, 320))
  boxes, valid = padded(random_boxes(3, 30), 64)
  matched, iou = assign(boxes, valid, np.array([256, 320]))
  positive = np.flatnonzero(matched >= 0)
  assert len(positive) > 30
  expected = box_ops.iou(points.anchors[positive], boxes[matched[positive]])
  np.testing.assert_allclose(iou[positive], expected, rtol=1e-6)


# Edges, one rule each.


def test_without_boxes_all_is_background_or_ignored():
  points, assign = compiled((64, 64), (8, 16))
  matched, iou = assign(*padded([], 6), np.array([32, 64]))
  np.testing.assert_array_equal(matched, [-1] * 32 + [-2] * 32 + [-1] * 8 + [-2] * 8)
  assert not iou.any()
  none, _ = assign(*padded([], 0), np.array([64, 64]))
  np.testing.assert_array_equal(none, np.full(80, -1))


def test_an_image_of_padding_is_ignored():
  _, assign = compiled((64, 64), (8, 16))
  matched, _ = assign(*padded([(0, 0, 60, 60)], 6), np.array([0, 0]))
  np.testing.assert_array_equal(matched, np.full(80, -2))


def test_nan_in_padding_does_not_matter():
  points, assign = compiled((64, 64), (8, 16))
  boxes, valid = padded([(3, 5, 50, 60)], 6)
  clean = assign(boxes, valid, np.array([64, 64]))
  boxes[~valid] = np.nan
  dirty = assign(boxes, valid, np.array([64, 64]))
  jax.tree.map(np.testing.assert_array_equal, clean, dirty)


def test_threshold_uses_the_standard_deviation_over_n_minus_1():
  # Two of five anchors overlap the box; the second is good enough only for n.
  points = make_points((8, 40), (8,), anchor_scale=1)
  boxes, valid = padded([(4, -4, 19.3, 4)], 6)
  iou = pairwise_iou(boxes[0], points.anchors)
  assert iou.mean() + iou.std() < iou[2] < iou.mean() + iou.std(ddof=1) < iou[1]
  matched, _ = jax.jit(lambda boxes, valid: atss(boxes, valid, points))(boxes, valid)
  np.testing.assert_array_equal(matched, [-1, 0, -1, -1, -1])


@pytest.mark.parametrize('gap, inside', [(0.02, True), (0.005, False)])
def test_points_must_be_more_than_a_hundredth_of_a_pixel_inside(gap, inside):
  points, assign = compiled((256, 320))
  boxes, valid = padded([(80 - gap, 70, 90, 90)], 64)
  matched, _ = assign(boxes, valid, np.array([256, 320]))
  point = np.flatnonzero((points.centers == (80, 80)).all(axis=1))[0]
  assert matched[point] == (0 if inside else -1)


def test_contested_anchor_goes_to_the_higher_iou_and_then_to_the_first():
  points, assign = compiled((64, 64), (8, 16))
  large, small = (0, 0, 62, 62), (10, 10, 50, 50)
  anchor = 4 * 8 + 4
  for order in ([large, small, large], [small, large, large]):
    boxes, valid = padded(order, 6)
    matched, iou = assign(boxes, valid, np.array([64, 64]))
    by_box = pairwise_iou(points.anchors[anchor], boxes[valid])
    assert matched[anchor] == np.argmax(by_box) == order.index(large)
    np.testing.assert_allclose(iou[anchor], by_box.max(), rtol=1e-6)


# Bad input.


def test_sizes_that_differ_are_refused():
  points = make_points((64, 64), (8,))
  boxes, valid = jnp.zeros((3, 4)), jnp.zeros(3, bool)
  with pytest.raises(ValueError, match='top_k=0'):
    atss(boxes, valid, points, top_k=0)
  with pytest.raises(ValueError, match=r'valid.shape=\(2,\)'):
    atss(boxes, valid[:2], points)
  with pytest.raises(ValueError, match=r'point_valid.shape=\(63,\).*64'):
    atss(boxes, valid, points, point_valid=jnp.ones(63, bool))
