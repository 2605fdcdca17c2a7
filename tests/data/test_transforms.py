"""Resizing, cropping and mirroring of boxes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gfl_jax.data import transforms
from tests.data import sets


@pytest.mark.parametrize(
  'size, short, longest, expected',
  [
    ((480, 640), 800, 1333, (800, 1067)),  # COCO's common size; mmdet prints the same
    ((427, 640), 800, 1333, (800, 1199)),
    ((300, 640), 800, 1333, (625, 1333)),  # the longer side decides
    ((640, 300), 800, 1333, (1333, 625)),
    ((1, 1000), 8, 16, (1, 16)),  # never less than a pixel
  ],
)
def test_resize_keeps_the_ratio_as_mmdet_does(size, short, longest, expected):
  got = transforms.resized_sizes(np.array([size]), short, longest)
  assert tuple(got[0]) == expected


def test_zoom_and_short_side_reach_both_ends_of_their_ranges():
  config = sets.config(short_side=(30, 40), max_long_side=999, zoom=(0.5, 2.0))
  draws = np.array([[0, 0, 0.5, 0, 0], [0, 1 - 1e-9, 0.5, 0, 0], [0, 0, 0, 0, 0]])
  sizes = np.full((3, 2), 100)
  plan = transforms.plan_training(np.arange(3), sizes, draws, (64, 64), config)
  np.testing.assert_array_equal(plan.resized[:, 0], [30, 40, 15])


def _plan(resized, offset, mirrored, canvas=(64, 64)):
  return transforms.Plan(
    np.zeros(1, int), np.array([resized]), np.array([offset]), np.array([mirrored]),
    canvas,
  )  # fmt: skip


def test_boxes_follow_resize_crop_and_mirror():
  # 100 x 100 becomes 200 x 200, of which 64 x 64 are seen from (y, x) = (20, 10).
  box = np.array([[10.0, 20.0, 30.0, 40.0]])
  sizes, owner = np.array([[100, 100]]), np.zeros(1, int)
  plan = _plan((200, 200), (20, 10), False)
  moved, inside = transforms.boxes_on_canvas(box, owner, sizes, plan)
  np.testing.assert_allclose(moved, [[10, 20, 50, 60]])
  assert inside.all()
  plan = plan._replace(mirrored=np.array([True]))
  moved, _ = transforms.boxes_on_canvas(box, owner, sizes, plan)
  np.testing.assert_allclose(moved, [[14, 20, 54, 60]])


@pytest.mark.parametrize('x0, kept', [(44.0, True), (54.0, True), (54.1, False)])
def test_crop_keeps_boxes_of_which_half_is_left(x0, kept):
  box = np.array([[x0, 0, x0 + 20, 20]])
  sizes = np.array([[100, 100]])
  moved, inside = transforms.boxes_on_canvas(
    box, np.zeros(1, int), sizes, _plan((100, 100), (0, 0), False)
  )
  assert inside[0] == kept
  assert moved[0, 2] == 64


def test_half_is_measured_within_the_image():
  """A box that reaches out of the photograph is not lost for that."""
  box = np.array([[-100.0, 0, 20, 20]])
  moved, inside = transforms.boxes_on_canvas(
    box, np.zeros(1, int), np.array([[64, 64]]), _plan((64, 64), (0, 0), False)
  )
  np.testing.assert_array_equal(moved, [[0, 0, 20, 20]])
  assert inside.all()


@given(seed=st.integers(0, 2**16))
@settings(max_examples=30, deadline=None)
def test_boxes_stay_ordered_and_within_the_image(seed):
  rng = np.random.default_rng(seed)
  sizes = rng.integers(40, 200, (5, 2))
  config = sets.config(zoom=(0.5, 2.0), short_side=(20, 60))
  plan = transforms.plan_training(
    np.arange(5), sizes, rng.random((5, transforms.NUM_DRAWS)), (64, 64), config
  )
  owner = rng.integers(5, size=20)
  corner = rng.uniform(-50, 150, (20, 2))
  boxes = np.concatenate([corner, corner + rng.uniform(1, 99, (20, 2))], -1)
  moved, _ = transforms.boxes_on_canvas(boxes, owner, sizes, plan)
  height, width = plan.image_sizes[owner].T
  assert (moved[:, 0] >= 0).all() and (moved[:, 1] >= 0).all()
  assert (moved[:, 2] <= width).all() and (moved[:, 3] <= height).all()
  assert (moved[:, 2:] >= moved[:, :2]).all()
  assert (plan.image_sizes <= 64).all()
  assert (plan.offsets + plan.image_sizes <= plan.resized).all()


@pytest.mark.parametrize(
  'box, degenerate',
  [
    ((0, 0, 1, 1), False),
    ((0, 0, 0.9, 5), True),  # under a pixel
    ((5, 5, 3, 9), True),  # inverted
    ((101, 5, 120, 9), True),  # outside
    ((99.5, 5, 120, 9), True),  # half a pixel inside
    ((-50, -50, 200, 200), False),
    ((np.nan, 0, 5, 5), True),
    ((0, 0, np.inf, 5), True),
  ],
)
def test_degenerate_boxes(box, degenerate):
  boxes, sizes = np.array([box], np.float32), np.array([[100, 100]])
  assert transforms.is_degenerate(boxes, sizes)[0] == degenerate


def test_an_image_that_cannot_fit_is_named():
  sizes, config = np.array([[50, 50], [50, 90]]), sets.config(max_long_side=100)
  with pytest.raises(ValueError, match=r'image 8 .*\(50, 90\) .*\(48, 86\).*64'):
    transforms.check_fit(sizes, np.array([7, 8]), config)
