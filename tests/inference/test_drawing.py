"""What a picture of detections shows."""

import numpy as np
import pytest
from PIL import Image

from gfl_jax.inference import drawing
from gfl_jax.inference.predictor import ImageDetections

GROUND = 200


def detections(*boxes, spread=(0, 0, 0, 0), classes=None, names=None):
  count = len(boxes)
  classes = np.zeros(count, np.int32) if classes is None else np.array(classes)
  return ImageDetections(
    boxes=np.array(boxes, np.float32).reshape(-1, 4),
    scores=np.linspace(0.9, 0.5, count, dtype=np.float32),
    classes=classes,
    names=names or tuple('x' * count),
    edge_std=np.array([spread] * count, np.float32).reshape(-1, 4),
  )


def drawn(found, size=(500, 600)):
  return np.asarray(drawing.draw(np.full((*size, 3), GROUND, np.uint8), found)).astype(
    int
  )


def test_no_detections_leave_the_image_as_it_is():
  image = np.random.default_rng(0).integers(0, 256, (300, 500, 3), np.uint8)
  np.testing.assert_array_equal(np.asarray(drawing.draw(image, detections())), image)


def test_the_line_is_where_the_box_is_and_in_the_colour_of_its_class():
  picture = drawn(detections((100, 200, 300, 400), classes=[4]))
  for y, x in ((300, 100), (300, 300), (400, 200), (200, 280)):
    np.testing.assert_array_equal(picture[y, x], drawing.class_color(4))
  for y, x in ((300, 95), (300, 200), (300, 305), (405, 200)):
    assert (picture[y, x] == GROUND).all()


@pytest.mark.parametrize('side', range(4))
def test_the_band_along_a_side_is_as_wide_as_its_spread(side):
  spread = [0, 0, 0, 0]
  spread[side] = 20
  picture = drawn(detections((200, 200, 400, 400), spread=spread))
  middle = [(300, 200), (200, 300), (300, 400), (400, 300)]
  for i, (y, x) in enumerate(middle):
    across = np.array([(0, 1), (1, 0)][i % 2])
    at = lambda distance, y=y, x=x, across=across: picture[
      tuple(np.array([y, x]) + distance * across)
    ]
    inside = [at(d) for d in (-19, -10, 10, 19)]
    if i == side:
      assert all((p != GROUND).any() for p in inside)  # shaded,
      assert all((p != drawing.class_color(0)).any() for p in inside)  # not covered
    else:
      assert all((p == GROUND).all() for p in inside)
    assert all((at(d) == GROUND).all() for d in (-23, 23))


def test_where_two_bands_of_a_box_cross_the_shade_is_no_deeper():
  picture = drawn(detections((200, 200, 400, 400), spread=(20, 20, 20, 20)))
  np.testing.assert_array_equal(picture[410, 390], picture[300, 390])


def test_labels_are_read_on_the_colour_and_cover_no_other_one():
  boxes = [(100, 200, 300, 400), (102, 201, 300, 402), (104, 202, 299, 401)]
  picture = drawn(detections(*boxes, classes=[0, 1, 2], names=('a', 'b', 'c')))
  one = drawn(detections(boxes[0], classes=[0], names=('a',)))
  label = np.s_[180:200, 101:140]
  assert (picture[label] == 255).any()  # the text
  np.testing.assert_array_equal(picture[label], one[label])
  for index in range(3):  # each label is somewhere: more than its lines
    assert (picture == drawing.class_color(index)).all(-1).sum() > 800


@pytest.mark.parametrize('name', ['Größe', 'клетка', 'λ'])
def test_letters_of_other_alphabets_have_a_shape(name):
  box = (100, 200, 300, 400)
  unknown = drawn(detections(box, names=('\uffff' * len(name),)))
  assert (drawn(detections(box, names=(name,))) != unknown).any()


@pytest.mark.parametrize(
  'size, shape', [((1, 1), (8, 8)), ((64, 120), (256, 480)), ((240, 160), (480, 320))]
)
def test_small_images_are_enlarged(size, shape):
  box = (0, 0, size[1], size[0])
  picture = drawn(detections(box, spread=(1, 1, 1, 1)), size)
  assert picture.shape == (*shape, 3)
  if size != (1, 1):
    np.testing.assert_array_equal(picture[shape[0] // 2, 0], drawing.class_color(0))


@pytest.mark.parametrize('size', [(200, 10_000), (10_000, 20), (480, 480)])
def test_boxes_and_bands_beyond_the_image_are_cut(size):
  height, width = size
  boxes = [
    (0, 0, width, height),
    (-50, -50, 20, 20),
    (width - 1, height - 1, width + 30, height + 30),
    (5, 5, 5, 5),
    (5.2, 5.1, 5.3, 5.4),
    (2 * width, 2 * height, 3 * width, 3 * height),
  ]
  picture = drawn(detections(*boxes, spread=(30, 30, 30, 30)), size)
  assert picture.shape == (*size, 3)


def test_a_hundred_detections_are_drawn():
  rng = np.random.default_rng(0)
  corners = rng.uniform(0, 400, (100, 2))
  boxes = np.concatenate([corners, corners + rng.uniform(5, 200, (100, 2))], -1)
  found = detections(*boxes, classes=np.arange(100) % 80, spread=(3, 5, 2, 9))
  assert isinstance(drawing.draw(np.zeros((500, 600, 3), np.uint8), found), Image.Image)
