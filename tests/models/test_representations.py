"""Distances and spreads of the three representations, and the scores' table."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import demo_shapes
from gfl_jax.models import build_detector
from gfl_jax.models.representations import REPRESENTATIONS
from gfl_jax.models.scores import SCORES


def box_config(**changes):
  c = demo_shapes.get_config().box
  c.update(start=0.0, stop=8.0, num_bins=5, scale=2.0, **changes)
  return c


def outputs(num_outputs, scale=1.0):
  return jnp.asarray(scale * np.random.default_rng(0).normal(size=(3, 4, num_outputs)))


def test_dirac_is_the_scale_times_an_exponential():
  dirac, c = REPRESENTATIONS['dirac'], box_config()
  x = outputs(1)
  np.testing.assert_allclose(dirac.distance(x, c), 2 * np.exp(x[..., 0]), rtol=1e-6)
  assert not dirac.std(x, c).any()
  assert dirac.num_outputs(c) == 1


def test_gaussian_has_a_mean_and_the_logarithm_of_its_variance():
  gaussian, c = REPRESENTATIONS['gaussian'], box_config()
  x = outputs(2)
  np.testing.assert_allclose(gaussian.distance(x, c), 2 * np.exp(x[..., 0]), rtol=1e-6)
  np.testing.assert_allclose(gaussian.std(x, c) ** 2, np.exp(x[..., 1]), rtol=1e-5)
  assert gaussian.num_outputs(c) == 2


def test_general_has_the_moments_of_its_bins():
  general, c = REPRESENTATIONS['general'], box_config()
  x = outputs(5)
  p = np.exp(x) / np.exp(x).sum(-1, keepdims=True)
  values = np.array([0, 2, 4, 6, 8])
  mean = (p * values).sum(-1)
  variance = (p * (values - mean[..., None]) ** 2).sum(-1)
  np.testing.assert_allclose(general.distance(x, c), mean, rtol=1e-5)
  np.testing.assert_allclose(general.std(x, c), np.sqrt(variance), rtol=1e-5)
  assert general.num_outputs(c) == 5


@pytest.mark.parametrize('kind', REPRESENTATIONS)
def test_extreme_outputs_stay_finite(kind):
  representation, c = REPRESENTATIONS[kind], box_config()
  for sign in (-100.0, 100.0):
    x = jnp.full((4, representation.num_outputs(c)), sign)
    for function in (representation.distance, representation.std):
      value, pull = jax.vjp(lambda x, f=function: f(x, c), x)
      assert (
        np.isfinite(value).all() and np.isfinite(pull(jnp.ones_like(value))[0]).all()
      )


@pytest.mark.parametrize('score', SCORES)
@pytest.mark.parametrize('box', REPRESENTATIONS)
def test_a_head_has_the_outputs_of_its_choices(score, box):
  config = demo_shapes.get_config()
  config.score.kind, config.box.kind = score, box
  detector = build_detector(config)
  image = jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.float32)
  shapes = jax.eval_shape(
    lambda x: detector.apply(detector.init(jax.random.key(0), x), x), image
  )
  num_anchors = 8 * 8 + 4 * 4 + 2 * 2
  num_outputs = {'dirac': 1, 'gaussian': 2, 'general': 33}[box]
  assert shapes.class_logits.shape == (2, num_anchors, 6)
  assert shapes.box_logits.shape == (2, num_anchors, 4, num_outputs)
  if score in ('centerness', 'iou'):
    assert shapes.quality_logits.shape == (2, num_anchors, 1)
  else:
    assert shapes.quality_logits is None


def test_the_branch_reads_the_tower_of_the_boxes():
  config = demo_shapes.get_config()
  config.score.kind = 'iou'
  head = build_detector(config).head.clone(parent=None)
  keys = jax.random.split(jax.random.key(1), 3)
  levels = [jax.random.normal(k, (1, 4, 4, 48)) for k in keys]
  variables = head.init(jax.random.key(0), levels)
  before = head.apply(variables, levels)
  params = variables['params']
  params['box_conv0']['kernel'] = -params['box_conv0']['kernel']
  after = head.apply(variables, levels)
  np.testing.assert_array_equal(after.class_logits, before.class_logits)
  assert not np.allclose(after.quality_logits, before.quality_logits, atol=1e-6)
  kernel = params['quality_output']['kernel']
  assert kernel.shape == (3, 3, 48, 1) and not params['quality_output']['bias'].any()
