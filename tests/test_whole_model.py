"""Whole detectors, as the authors' code: losses, gradients, SGD steps, detections."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gfl_jax.evaluation import decode
from gfl_jax.models import build_detector, canvas_points, frozen_mask, network_input
from gfl_jax.training import objective, optimizer
from gfl_jax.weights import mmdet
from tests import golden, golden_weights

NAMES = ('model_r18', 'model_r50')
# Rounding alone: two correct float32 programs differ by as much. A ResNet-50 of random
# weights and frozen norms amplifies it a hundred times more than a ResNet-18.
GRADIENT_NOISE = {'model_r18': 2e-5, 'model_r50': 1e-3}
TERMS = ('loss_class', 'loss_box', 'loss_edge')


def normalized(arrays, config):
  pixels = arrays['image_bgr_uint8'][None, ..., ::-1]
  sizes = np.array([pixels.shape[1:3]])
  return network_input(config, {'images': pixels, 'image_sizes': sizes})


@functools.cache
def trained(name):
  """Scalars of five SGD steps, the first step's gradients, and all changes.

  The gradients and changes are by the authors' names, as numpy arrays.
  """
  arrays, config = golden.load(name), golden_weights.config(name)
  rate, momentum, decay = arrays['sgd/lr_momentum_wd'].tolist()
  config.optimizer.update(momentum=momentum, weight_decay=decay)
  variables = golden_weights.variables(name)
  detector = build_detector(config)
  anchors = canvas_points(config, arrays['image_bgr_uint8'].shape[:2])
  batch = {
    'boxes': arrays['gt/boxes'][None],
    'labels': arrays['gt/labels'][None],
    'valid': np.ones((1, len(arrays['gt/labels'])), bool),
    'image_sizes': np.array([arrays['image_bgr_uint8'].shape[:2]]),
  }
  image = normalized(arrays, config)
  frozen = frozen_mask(variables['params'], config.model.backbone.frozen_stages)
  sgd = optimizer.make_optimizer(config, optax.constant_schedule(rate), frozen)

  @jax.jit
  def step(params, state):
    def loss(params):
      predictions = detector.apply({**variables, 'params': params}, image)
      return objective.detection_loss(predictions, batch, anchors, config)

    gradients, scalars = jax.grad(loss, has_aux=True)(params)
    updates, state = sgd.update(gradients, state, params)
    return optax.apply_updates(params, updates), state, gradients, scalars

  params = jax.tree.map(jnp.asarray, variables['params'])
  state, history, first_gradients = sgd.init(params), [], None
  for _ in range(5):
    params, state, gradients, scalars = step(params, state)
    history.append([float(scalars[term]) for term in TERMS])
    first_gradients = first_gradients or gradients
  named = lambda tree: mmdet.to_mmdet({**variables, 'params': tree})
  changes = jax.tree.map(lambda a, b: np.asarray(a) - b, params, variables['params'])
  return np.array(history), named(first_gradients), named(changes)


@pytest.mark.parametrize('name', NAMES)
def test_losses_are_the_authors(name):
  history, _, _ = trained(name)
  expected = golden.load(name)['sgd/losses']
  np.testing.assert_allclose(history[0], expected[0], rtol=1e-5)
  # Rounding makes the two runs drift apart slowly.
  np.testing.assert_allclose(history, expected, rtol=1e-2)


@pytest.mark.parametrize('name', NAMES)
def test_gradient_norms_are_the_authors(name):
  arrays = golden.load(name)
  _, gradients, _ = trained(name)
  trains, norms = arrays['grad/requires_grad'], arrays['grad/l2_norm']
  for key, is_trained, norm in zip(arrays['grad/names'], trains, norms, strict=True):
    ours = np.linalg.norm(np.asarray(gradients[key], np.float64))
    rtol = GRADIENT_NOISE[name] if is_trained else 0  # frozen: exactly 0
    np.testing.assert_allclose(ours, norm, rtol=rtol, atol=0, err_msg=key)


@pytest.mark.parametrize('name', NAMES)
def test_gradients_are_the_authors(name):
  arrays = golden.load(name)
  _, gradients, _ = trained(name)
  keys = [key.split('/')[1] for key in arrays if key.endswith('/value')]
  keys = [key for key in keys if key in gradients]
  assert len(keys) > 10
  for key in keys:
    expected = arrays[f'grad/{key}/value']
    values = np.asarray(gradients[key]).ravel()[arrays[f'grad/{key}/index']]
    atol = GRADIENT_NOISE[name] * np.abs(expected).max()
    np.testing.assert_allclose(values, expected, rtol=0, atol=atol, err_msg=key)


@pytest.mark.parametrize('name', NAMES)
def test_parameters_move_as_far_as_the_authors(name):
  arrays = golden.load(name)
  _, _, changes = trained(name)
  norms = [
    np.linalg.norm(np.asarray(changes[k], np.float64)) for k in arrays['grad/names']
  ]
  expected = arrays['sgd/param_change_l2']
  # Five steps of drift, as with the losses; single small tensors drift more.
  np.testing.assert_allclose(np.linalg.norm(norms), np.linalg.norm(expected), rtol=1e-2)
  np.testing.assert_allclose(norms, expected, rtol=2e-2, atol=0)


@functools.cache
def detections(name):
  """Candidates before NMS and final detections, as numpy arrays of one image."""
  arrays, config = golden.load(name), golden_weights.config(name)
  size = arrays['image_bgr_uint8'].shape[:2]
  detector, anchors = build_detector(config), canvas_points(config, size)
  everything = config.copy_and_resolve_references()
  everything.decode.update(nms_iou=1.0, max_detections=2000)

  @jax.jit
  def predict(variables, image):
    predictions = detector.apply(variables, image)
    sizes = jnp.array([size])
    return [
      decode.decode_detections(predictions, anchors, sizes, c)
      for c in (everything, config)
    ]

  found = predict(golden_weights.variables(name), normalized(arrays, config))
  return [jax.tree.map(lambda x: np.asarray(x[0]), part) for part in found]


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('stage', ['pre', 'final'])
def test_detections_are_the_authors(name, stage):
  arrays = golden.load(name)
  found = detections(name)[stage == 'final']
  ours = np.column_stack([found.classes, found.scores, found.boxes])[found.valid]
  theirs = np.column_stack(
    [arrays[f'det/{stage}/{key}'] for key in ('labels', 'scores', 'boxes')]
  )
  assert len(ours) == len(theirs)
  # Neighbours in score may change places by rounding: each of theirs finds its own.
  distance = np.abs(ours[:, None] - theirs[None]) * [1e6, 1e3, 1, 1, 1, 1]
  nearest = distance.sum(axis=-1).argmin(axis=0)
  assert sorted(nearest) == list(range(len(theirs)))
  np.testing.assert_array_equal(ours[nearest, 0], theirs[:, 0])
  np.testing.assert_allclose(ours[nearest, 1], theirs[:, 1], atol=1e-5, rtol=0)
  np.testing.assert_allclose(ours[nearest, 2:], theirs[:, 2:], atol=1e-2, rtol=0)
