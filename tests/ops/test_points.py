import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gfl_jax.ops.points import level_slices, make_points, point_validity
from tests import golden

GOLDEN = golden.load('assigner')
STRIDES = (8, 16, 32, 64, 128)


@pytest.mark.parametrize('size', [(256, 320), (800, 1344), (64, 64)])
def test_anchors_equal_the_authors(size):
  points = make_points(size, STRIDES)
  key = f'anchors/{size[0]}x{size[1]}'
  np.testing.assert_array_equal(points.anchors, GOLDEN[key])
  cells = [rows * columns for rows, columns in points.level_sizes]
  np.testing.assert_array_equal(cells, GOLDEN[f'{key}/per_level'])


def test_validity_equals_the_authors():
  for i in range(len(GOLDEN['case_names'])):
    case = lambda key, i=i: GOLDEN[f'case{i:02}/{key}']
    points = make_points(case('batch_shape').tolist(), STRIDES)
    valid = point_validity(points, case('img_shape'))
    np.testing.assert_array_equal(valid, case('valid'))


def test_points_of_a_small_canvas_by_hand():
  points = make_points((16, 24), (8, 16), offset=0.5, anchor_scale=2)
  np.testing.assert_array_equal(
    points.centers,
    [[4, 4], [12, 4], [20, 4], [4, 12], [12, 12], [20, 12], [8, 8], [24, 8]],
  )
  np.testing.assert_array_equal(points.strides, [8] * 6 + [16] * 2)
  assert points.level_sizes == ((2, 3), (1, 2))
  assert level_slices(points) == (slice(0, 6), slice(6, 8))
  np.testing.assert_array_equal(
    points.anchors[[0, 7]], [[-4, -4, 12, 12], [8, -8, 40, 24]]
  )


def test_levels_of_an_odd_canvas_are_rounded_up():
  assert make_points((33, 65), (8, 32)).level_sizes == ((5, 9), (2, 3))


@pytest.mark.parametrize('offset', [0.0, 0.5])
def test_validity_follows_the_padded_size_of_each_image(offset):
  points = make_points((64, 96), (8, 64), offset=offset)
  sizes = jnp.array([[[64, 96], [33, 1]], [[32, 32], [0, 0]]])
  valid = jax.jit(lambda s: point_validity(points, s))(sizes)
  fine = np.asarray(valid[..., :96]).reshape(2, 2, 8, 12)
  rows, columns = fine.any(axis=3).sum(axis=2), fine.any(axis=2).sum(axis=2)
  np.testing.assert_array_equal(rows, [[8, 8], [4, 0]])
  np.testing.assert_array_equal(columns, [[12, 4], [4, 0]])
  np.testing.assert_array_equal(fine.sum(axis=(2, 3)), rows * columns)
  # One coarse cell already holds an image of 32 pixels; the second begins at 64.
  coarse = [[[True, True], [True, False]], [[True, False], [False, False]]]
  np.testing.assert_array_equal(valid[..., 96:], coarse)


def test_another_divisor():
  points = make_points((64, 64), (8,))
  assert point_validity(points, jnp.array([9, 17]), divisor=8).sum() == 2 * 3


@pytest.mark.parametrize(
  'size, strides, scale',
  [((0, 64), (8,), 8), ((64, 64), (), 8), ((64, 64), (8, 0), 8), ((64, 64), (8,), 0)],
)
def test_geometry_that_is_not_positive_is_refused(size, strides, scale):
  with pytest.raises(ValueError, match='anchor_scale=.*positive'):
    make_points(size, strides, anchor_scale=scale)
