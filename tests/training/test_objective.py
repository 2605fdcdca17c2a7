import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import gfl_r50_fpn_1x_coco
from gfl_jax.models import Predictions, build_detector, canvas_points
from gfl_jax.ops import boxes
from gfl_jax.training import objective, targets
from gfl_jax.weights import mmdet
from tests import golden, golden_weights, tiny

TERMS = ('loss_class', 'loss_box', 'loss_edge')
GOLDEN_TERMS = ('loss_cls', 'loss_bbox', 'loss_dfl')


def padded_boxes(boxes, labels, max_boxes=8):
  """Lists of [n, 4] and [n] as a batch's `boxes`, `labels` and `valid`."""
  batch = {
    'boxes': np.zeros((len(boxes), max_boxes, 4), np.float32),
    'labels': np.zeros((len(boxes), max_boxes), np.int32),
    'valid': np.zeros((len(boxes), max_boxes), bool),
  }
  for i, (b, c) in enumerate(zip(boxes, labels, strict=True)):
    batch['boxes'][i, : len(b)] = b
    batch['labels'][i, : len(b)] = c
    batch['valid'][i, : len(b)] = True
  return batch


@functools.cache
def head_gradients():
  """Jitted (params, features, batch) -> ((loss, scalars), gradients of both)."""
  config = golden_weights.config('head')
  detector = build_detector(config)
  anchors = canvas_points(config, golden.load('head')['meta/batch_shape'].tolist())

  def loss(params, features, batch):
    predictions = detector.apply(
      {'params': params}, features, method=lambda d, x: d.head(x)
    )
    return objective.detection_loss(predictions, batch, anchors, config)

  return jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))


def head_case(case):
  """The golden head on case A (boxes in both images), B (one), or C (none)."""
  arrays = golden.load('head')
  boxes = [arrays['gt0/boxes'], arrays['gt1/boxes']]
  labels = [arrays['gt0/labels'], arrays['gt1/labels']]
  for empty in {'A': [], 'B': [1], 'C': [0, 1]}[case]:
    boxes[empty], labels[empty] = boxes[empty][:0], labels[empty][:0]
  batch = padded_boxes(boxes, labels)
  batch['image_sizes'] = arrays['meta/img_shape']
  features = tuple(arrays[f'feats/{i}'].transpose(0, 2, 3, 1) for i in range(5))
  params = golden_weights.variables('head')['params']
  (_, scalars), (params, features) = head_gradients()(params, features, batch)
  entries = mmdet.to_mmdet({**golden_weights.variables('head'), 'params': params})
  gradients = {
    f'grad_params/{key.removeprefix("bbox_head.")}': np.asarray(value)
    for key, value in entries.items()
    if key.startswith('bbox_head.')
  }
  for i, x in enumerate(features):
    gradients[f'grad_feats/{i}'] = np.asarray(x).transpose(0, 3, 1, 2)
  return arrays, scalars, gradients


@pytest.mark.parametrize('case', 'ABC')
def test_losses_of_the_head_are_the_authors(case):
  arrays, scalars, _ = head_case(case)
  for ours, theirs in zip(TERMS, GOLDEN_TERMS, strict=True):
    np.testing.assert_allclose(
      scalars[ours], arrays[f'{case}/{theirs}'], rtol=1e-5, err_msg=ours
    )
  np.testing.assert_allclose(scalars['loss'], arrays[f'{case}/loss_total'], rtol=1e-5)


def test_gradients_of_the_head_are_the_authors():
  arrays, _, gradients = head_case('A')
  checked = [key for key in arrays if key.startswith(('A/grad_params', 'A/grad_feats'))]
  assert len(checked) > 20
  for key in checked:
    expected = arrays[key]
    scale = np.abs(expected).max()
    np.testing.assert_allclose(
      gradients[key.removeprefix('A/')].reshape(expected.shape),
      expected,
      atol=1e-5 * scale + 1e-12,
      rtol=0,
      err_msg=key,
    )


@pytest.mark.parametrize('case', 'BC')
def test_gradient_norms_with_empty_images_are_the_authors(case):
  arrays, _, gradients = head_case(case)
  for kind in ('grad_params', 'grad_feats'):
    keys = [key for key in arrays if key.startswith(f'{case}/{kind}_norm/')]
    assert keys
    for key in keys:
      name = f'{kind}/{key.split("/", 2)[2]}'
      norm = np.linalg.norm(gradients[name].astype(np.float64))
      np.testing.assert_allclose(norm, arrays[key], rtol=1e-5, atol=1e-9, err_msg=key)


def random_predictions(config, batch, *, scale=1.0, seed=0):
  anchors = canvas_points(config, batch['images'].shape[1:3])
  shape = (len(batch['images']), len(anchors.centers))
  rng = np.random.default_rng(seed)
  normal = lambda *s: jnp.asarray(scale * rng.normal(size=s), jnp.float32)
  classes, bins = config.model.num_classes, config.box.num_bins
  predictions = Predictions(normal(*shape, classes), normal(*shape, 4, bins), None)
  return predictions, anchors


@functools.cache
def tiny_loss():
  """Jitted loss, scalars and gradient of predictions for the tiny config."""
  config = tiny.config()
  anchors = canvas_points(config, (64, 64))

  def loss(predictions, batch):
    return objective.detection_loss(predictions, batch, anchors, config)

  return jax.jit(jax.value_and_grad(loss, has_aux=True))


def test_padding_boxes_change_nothing():
  config, batch = tiny.config(), tiny.batch()
  predictions, _ = random_predictions(config, batch)
  (loss, _), gradient = tiny_loss()(predictions, batch)
  other = dict(batch, boxes=np.where(batch['valid'][..., None], batch['boxes'], 1e6))
  (same, _), same_gradient = tiny_loss()(predictions, other)
  assert loss == same
  jax.tree.map(np.testing.assert_array_equal, gradient, same_gradient)


def test_anchors_beyond_the_image_are_not_trained():
  config, batch = tiny.config(), tiny.batch()
  batch['image_sizes'] = np.full((8, 2), (32, 64), np.int32)
  batch['boxes'][..., 1::2] = np.minimum(batch['boxes'][..., 1::2], 32)
  predictions, anchors = random_predictions(config, batch)
  _, gradient = tiny_loss()(predictions, batch)
  # With offset 0 and strides 8, 16, 32 a row of cells at y lies on the image if y < 32.
  beyond = anchors.centers[:, 1] >= 32
  assert beyond.any()
  assert not np.any(gradient.class_logits[:, beyond])
  assert np.all(np.any(gradient.class_logits[:, ~beyond], axis=(0, 2)))


def test_a_batch_without_boxes_trains_the_classes_alone():
  config, batch = tiny.config(), tiny.batch()
  batch['valid'][:] = False
  predictions, _ = random_predictions(config, batch)
  (_, scalars), gradient = tiny_loss()(predictions, batch)
  assert scalars['loss_class'] > 0
  assert scalars['loss_box'] == scalars['loss_edge'] == 0
  assert np.all(np.isfinite(gradient.class_logits)) and np.any(gradient.class_logits)
  assert not np.any(gradient.box_logits)


@pytest.mark.parametrize('scale', [100.0, 1e4])
def test_extreme_logits_stay_finite(scale):
  config, batch = tiny.config(), tiny.batch()
  predictions, _ = random_predictions(config, batch, scale=scale)
  (loss, _), gradient = tiny_loss()(predictions, batch)
  assert np.isfinite(loss)
  assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradient))


def test_positives_beyond_the_capacity_of_a_batch_are_left_out_fairly_and_counted():
  config, batch = tiny.config(), tiny.batch()
  predictions, anchors = random_predictions(config, batch)
  matched, none_dropped = targets.assign(batch, anchors, config)
  matched = np.asarray(matched)
  positive = matched >= 0
  assert none_dropped == 0 and positive.sum(axis=1).max() > positive.sum() / 8
  # One image may have more than its share, as long as the batch has not.
  config.box_loss.max_positives_per_image = -(-int(positive.sum()) // 8)
  same, none_dropped = targets.assign(batch, anchors, config)
  np.testing.assert_array_equal(same, matched)
  assert none_dropped == 0

  config.box_loss.max_positives_per_image = 4  # as many as an image has boxes
  kept = np.asarray(targets.assign(batch, anchors, config)[0]) >= 0
  assert kept.sum() <= 32 < positive.sum()
  numbers = []  # of the anchors that each box keeps, and whether it had more
  for image, box in sorted({(i, matched[i, a]) for i, a in np.argwhere(positive)}):
    (mine,) = np.nonzero(matched[image] == box)
    its_box = np.tile(batch['boxes'][image, box], (len(mine), 1))
    iou, stays = (
      np.asarray(boxes.iou(anchors.anchors[mine], its_box)),
      kept[image, mine],
    )
    assert stays.any() and iou[stays].min() >= iou[~stays].max(initial=0)  # its best
    numbers.append((stays.sum(), stays.all()))
  most = max(number for number, _ in numbers)
  # Those that had more keep as many as the others.
  assert {number for number, had_no_more in numbers if not had_no_more} == {most}

  def loss(predictions):
    return objective.detection_loss(predictions, batch, anchors, config)

  (_, scalars), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(predictions)
  assert scalars['dropped_positives'] == positive.sum() - kept.sum()
  assert np.all(np.any(gradient.box_logits[kept], axis=(1, 2)))
  for leaf in (gradient.box_logits, gradient.class_logits):
    assert not np.any(leaf[positive & ~kept])


def test_no_positive_of_crowded_images_is_dropped_by_the_recipe():
  config, canvas = gfl_r50_fpn_1x_coco.get_config(), (800, 1344)
  rng = np.random.default_rng(0)
  corner = rng.uniform(0, (1233, 700), (1, 100, 2))
  side = np.exp(rng.uniform(np.log(16), np.log(400), (1, 100, 2)))
  batch = {
    'boxes': np.concatenate([corner, corner + side], -1).clip(0, 800).astype('float32'),
    'valid': np.ones((1, 100), bool),
    'image_sizes': np.array([[800, 1333]]),
  }
  anchors = canvas_points(config, canvas)
  matched, dropped = jax.jit(lambda b: targets.assign(b, anchors, config))(batch)
  assert dropped == 0 and (np.asarray(matched) >= 0).sum() > 512


@pytest.mark.parametrize(
  'section', ['assignment', 'class_loss', 'edge_loss', 'box_loss']
)
def test_an_unknown_choice_is_named(section):
  config, batch = tiny.config(), tiny.batch()
  predictions, anchors = random_predictions(config, batch)
  config[section].kind = 'atts'
  with pytest.raises(ValueError, match=f"{section}.kind='atts' is not one of"):
    objective.detection_loss(predictions, batch, anchors, config)
