"""The drawn scenes: how annotations scatter, and what a perfect detector gets."""

import numpy as np
import pytest

from gfl_jax.data import scenes
from gfl_jax.evaluation import coco_metrics


@pytest.fixture(scope='module')
def drawn():
  return [scenes.draw_scene((0, 1, i)) for i in range(150)]


def test_a_key_always_gives_the_same_scene(drawn):
  again = scenes.draw_scene((0, 1, 3))
  for a, b in zip(again, drawn[3], strict=True):
    np.testing.assert_array_equal(a, b)
  assert (scenes.draw_scene((1, 1, 3)).image != drawn[3].image).any()


def test_annotated_sides_scatter_by_their_sigma(drawn):
  deviation = np.concatenate(
    [((s.boxes - s.true_boxes) / s.edge_sigma).ravel() for s in drawn]
  )
  assert len(deviation) > 1000
  np.testing.assert_allclose(deviation.mean(), 0, atol=0.1)
  np.testing.assert_allclose(deviation.std(), 1, atol=0.08)


def test_scenes_cover_classes_sizes_and_edge_kinds(drawn):
  kinds = np.bincount(np.concatenate([s.edge_kind.ravel() for s in drawn]))
  shares = kinds / kinds.sum()
  assert shares[0] == pytest.approx(0.69, abs=0.05)
  assert (shares[1:] > 0.06).all() and len(shares) == len(scenes.EDGE_KINDS)
  labels = np.concatenate([s.labels for s in drawn])
  assert set(labels) == set(range(len(scenes.CLASS_NAMES)))
  sides = np.concatenate([s.true_boxes[:, 2:] - s.true_boxes[:, :2] for s in drawn])
  extent = np.sqrt(sides.prod(-1))
  for share in ((extent < 32).mean(), (extent > 96).mean()):
    assert share > 0.03


def test_boxes_are_ordered_and_within_the_image(drawn):
  for scene in drawn:
    assert scene.image.shape == (128, 128, 3) and scene.image.dtype == np.uint8
    assert 1 <= len(scene.boxes) <= scenes.MAX_OBJECTS
    assert (scene.boxes[:, 2:] > scene.boxes[:, :2] + 4).all()
    assert scene.boxes.min() >= 0 and scene.boxes.max() <= 128


def test_ambiguity_is_as_wide_as_what_hides_the_side(drawn):
  """Sigma is in proportion to the object, and sharp sides have the least."""
  for scene in drawn:
    extent = (scene.true_boxes[:, 2:] - scene.true_boxes[:, :2])[:, [0, 1, 0, 1]]
    ambiguous = scene.edge_kind > 0
    assert (scene.edge_sigma[~ambiguous] == scenes.SHARP_SIGMA).all()
    assert (scene.edge_sigma[ambiguous] > scenes.SHARP_SIGMA).all()
    limit = scenes.AMBIGUOUS_SIGMA[1] * extent
    assert (scene.edge_sigma[ambiguous] <= limit[ambiguous]).all()


@pytest.mark.parametrize('label', range(len(scenes.CLASS_NAMES)))
def test_a_sharp_shape_fills_its_box(label):
  """The true sides are those of the painted pixels."""
  image = np.full((128, 128, 3), 0.5, np.float32)
  box = np.array([20.0, 30.0, 80.0, 110.0])
  rng, none = np.random.default_rng(0), np.zeros(4, int)
  scenes._draw_object(image, rng, box, label, none, np.full(4, scenes.SHARP_SIGMA))
  changed = np.abs(image - 0.5).max(-1) > 0.02
  rows, columns = (np.flatnonzero(changed.any(axis)) for axis in (1, 0))
  found = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
  np.testing.assert_allclose(found, box, atol=2)


def test_a_perfect_detector_reaches(drawn):
  """The AP of the true sides against the annotated ones, the best there can be."""
  images, annotations, detections = [], [], []
  for number, scene in enumerate(drawn):
    images.append({'id': number, 'height': 128, 'width': 128})
    for box, true, label in zip(
      scene.boxes, scene.true_boxes, scene.labels, strict=True
    ):
      common = {'image_id': number, 'category_id': int(label)}
      xywh = lambda b: [*b[:2].tolist(), *(b[2:] - b[:2]).tolist()]
      annotations.append(
        common
        | {
          'id': len(annotations) + 1,
          'bbox': xywh(box),
          'area': float((box[2:] - box[:2]).prod()),
          'iscrowd': 0,
        }
      )
      detections.append(common | {'bbox': xywh(true), 'score': 0.9})
  categories = [{'id': i, 'name': n} for i, n in enumerate(scenes.CLASS_NAMES)]
  truth = {'images': images, 'annotations': annotations, 'categories': categories}
  metrics = coco_metrics.evaluate_detections(truth, detections)
  print({k: v for k, v in metrics.items() if k != 'per_class'})
  assert 0.8 < metrics['AP'] < 0.95
