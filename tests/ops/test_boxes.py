import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import TypeCheckError

from gfl_jax.ops import boxes as box_ops
from tests import golden

GOLDEN = golden.load('losses')
UNIT = jnp.array([0.0, 0.0, 1.0, 1.0])


def close(actual, expected):
  np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=1e-6)


# Parity with the authors' code.


def test_iou_and_giou_equal_the_authors():
  pred, target = GOLDEN['giou/pred'], GOLDEN['giou/target']
  close(box_ops.iou(pred, target), GOLDEN['giou/iou'])
  close(box_ops.giou(pred, target), 1 - GOLDEN['giou/eps1e-06/loss'])
  close(box_ops.iou_matrix(pred[:24], target[:17]), GOLDEN['pairwise/iou'])
  close(box_ops.giou_matrix(pred[:24], target[:17]), GOLDEN['pairwise/giou'])


def test_coder_equals_the_authors():
  points, boxes = GOLDEN['coder/points'], GOLDEN['coder/boxes']
  close(box_ops.boxes_to_distances(points, boxes), GOLDEN['coder/encode'])
  decoded = box_ops.distances_to_boxes(points, GOLDEN['coder/distances'])
  close(decoded, GOLDEN['coder/decode'])
  clipped = box_ops.clip_boxes(decoded, GOLDEN['coder/decode_max_shape'])
  close(clipped, GOLDEN['coder/decode_clipped'])


# Truths.

whole_boxes = st.tuples(*[st.integers(0, 12)] * 2, *[st.integers(1, 6)] * 2).map(
  lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3])
)


def cells(box):
  x1, y1, x2, y2 = box
  return {(x, y) for x in range(x1, x2) for y in range(y1, y2)}


@settings(max_examples=40, deadline=None)
@given(a=whole_boxes, b=whole_boxes)
def test_areas_are_counts_of_cells(a, b):
  union = len(cells(a) | cells(b))
  hull = len(cells((*np.minimum(a, b)[:2], *np.maximum(a, b)[2:])))
  overlap = len(cells(a) & cells(b)) / union
  a, b = (np.array([box], np.float32) for box in (a, b))
  close(box_ops.iou(a, b), [overlap])
  close(box_ops.giou(a, b), [overlap - (hull - union) / hull])


def test_area_has_no_plus_one_and_keeps_its_sign():
  boxes = jnp.array([[1.0, 2, 4, 7], [3, 3, 3, 9], [4, 2, 1, 7]])
  close(box_ops.area(boxes), [15, 0, -15])


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 1000))
def test_encoding_and_decoding_undo_each_other(seed):
  rng = np.random.default_rng(seed)
  points, distances = rng.uniform(-9, 9, (5, 2)), rng.uniform(-9, 9, (5, 4))
  boxes = box_ops.distances_to_boxes(jnp.array(points), jnp.array(distances))
  back = box_ops.boxes_to_distances(jnp.array(points), boxes)
  np.testing.assert_allclose(back, distances, atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 1000))
def test_centerness_by_hand(seed):
  sides = np.random.default_rng(seed).uniform(0.01, 99, (6, 4)).astype(np.float32)
  horizontal, vertical = np.sort(sides[:, [0, 2]]), np.sort(sides[:, [1, 3]])
  ratios = horizontal[:, 0] / horizontal[:, 1] * vertical[:, 0] / vertical[:, 1]
  close(box_ops.centerness(sides), np.sqrt(ratios))
  # In the middle 1, and the same in any unit and mirrored either way.
  close(box_ops.centerness(sides[:, [0, 1, 0, 1]]), np.ones(6))
  close(box_ops.centerness(sides[:, [2, 1, 0, 3]] / 8), np.sqrt(ratios))
  close(box_ops.centerness(sides[:, [0, 3, 2, 1]] * 8), np.sqrt(ratios))


def test_centerness_of_a_quarter_of_the_way():
  close(box_ops.centerness(jnp.array([[1.0, 2, 3, 2], [1, 1, 4, 4]])), [3**-0.5, 0.25])


# Invariances.


def test_matrices_are_the_pairs_and_leading_axes_are_batches():
  a, b = np.random.default_rng(0).uniform(0, 9, (2, 3, 5, 4)).astype(np.float32)
  b = b[:, :4]
  for pairwise, matrix in (
    (box_ops.iou, box_ops.iou_matrix),
    (box_ops.giou, box_ops.giou_matrix),
  ):
    whole = matrix(a, b)
    assert whole.shape == (3, 5, 4)
    close(whole[1, 2, 3], pairwise(a[1, 2], b[1, 3]))
    close(whole[2], matrix(a[2], b[2]))


# Edges.


def test_boxes_without_area_have_overlap_zero_and_finite_gradients():
  point = jnp.array([2.0, 2.0, 2.0, 2.0])
  for function in (box_ops.iou, box_ops.giou):
    value, grad = jax.value_and_grad(function)(point, point)
    close(value, 0.0)
    assert np.isfinite(grad).all()


def test_boxes_that_touch_still_attract_each_other():
  # As through torch's clamp(min=0), the slope at overlap 0 is that of overlap above 0.
  touching = jax.grad(box_ops.iou)(UNIT, UNIT + jnp.array([1.0, 0, 1, 0]))
  close(touching[2], 0.5)


@pytest.mark.parametrize('distance', [0.0, -1.0, -np.inf, np.nan])
def test_points_that_are_not_inside_have_centerness_0_and_finite_slopes(distance):
  sides = jnp.where(jnp.eye(4, dtype=bool), distance, 2.0)
  close(box_ops.centerness(sides), np.zeros(4))
  close(jax.grad(lambda x: box_ops.centerness(x).sum())(sides), np.zeros((4, 4)))
  close(box_ops.centerness(jnp.full((1, 4), distance)), [0.0])


def test_no_box_gives_an_empty_matrix():
  assert box_ops.iou_matrix(jnp.zeros((0, 4)), UNIT[None]).shape == (0, 1)


def test_clipping_moves_a_box_outside_to_the_border():
  clipped = box_ops.clip_boxes(jnp.array([[-5.0, 90, 30, 95]]), (80, 20))
  close(clipped, [[0, 80, 20, 80]])


# Bad input (what the annotations refuse when they are checked, as in these tests).


def test_pairwise_overlaps_do_not_broadcast():
  with pytest.raises(TypeCheckError):
    box_ops.iou(UNIT[None], jnp.zeros((3, 4)))
