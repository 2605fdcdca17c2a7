import functools

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from flax import traverse_util

from configs import gfl_r50_fpn_1x_coco
from gfl_jax.models import (
  build_detector,
  frozen_mask,
  init_variables,
  network_input,
  stages,
)
from gfl_jax.models.detector import Detector
from tests import golden, golden_weights, tiny
from tests.models.draws import draw


def tiny_config(**changes):
  config = gfl_r50_fpn_1x_coco.get_config()
  config.model.backbone.update(
    depth=10, widths=(8, 8, 8, 16), stem='patch4', norm='group_norm', norm_groups=4
  )
  config.model.neck.update(channels=16, num_levels=3)
  config.model.head.update(channels=16, num_convs=1, norm_groups=8)
  config.model.num_classes = 6
  config.update(changes)
  return config


def images():
  return jax.random.normal(jax.random.key(1), (2, 64, 96, 3))


@functools.partial(jax.jit, static_argnums=0)
def apply(detector, variables, images):
  """Compiled once for all tests with equal detectors."""
  return detector.apply(variables, images)


@pytest.mark.parametrize('name', ['model_r50', 'model_r18'])
def test_whole_detector_equals_the_authors(name):
  arrays = golden.load(name)
  config = golden_weights.config(name)
  rgb = arrays['image_bgr_uint8'][None, :, :, ::-1]
  image = jnp.asarray((rgb - np.array(config.data.mean)) / config.data.std, jnp.float32)

  def parts(detector, image):
    features = detector.backbone(image)
    levels = detector.neck(features[1:])
    return features, levels, detector.head(levels)

  detector = build_detector(config)
  features, levels, out = jax.jit(lambda v, x: detector.apply(v, x, method=parts))(
    golden_weights.variables(name), image
  )
  maps = {f'C{i + 2}': x for i, x in enumerate(features)}
  maps |= {f'P{i + 3}': x for i, x in enumerate(levels)}
  cuts = np.cumsum([x.shape[1] * x.shape[2] for x in levels])[:-1]
  for key, logits in (('cls', out.class_logits), ('reg', out.box_logits)):
    for i, part in enumerate(np.split(logits, cuts, axis=1)):
      maps[f'{key}{i}'] = part.reshape(*levels[i].shape[:3], -1)

  for key, actual in maps.items():
    actual = np.asarray(actual).transpose(0, 3, 1, 2)
    assert actual.shape == tuple(arrays[f'{key}/shape']), key
    # `noise` is the authors' own largest rounding error; ours comes on top.
    tolerance = 3 * arrays[f'{key}/noise']
    values = actual.ravel()[arrays[f'{key}/index']]
    np.testing.assert_allclose(
      values, arrays[f'{key}/value'], rtol=0, atol=tolerance, err_msg=key
    )


def test_number_of_parameters_is_the_authors():
  detector = build_detector(gfl_r50_fpn_1x_coco.get_config())
  shapes = jax.eval_shape(detector.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
  assert sum(leaf.size for leaf in jax.tree.leaves(shapes['params'])) == 32_440_537


def test_pixels_are_normalised_and_padding_is_zero():
  config = tiny_config()
  images = np.random.default_rng(0).integers(0, 256, (3, 6, 8, 3)).astype(np.uint8)
  sizes = np.array([[6, 8], [2, 5], [0, 0]], np.int32)
  batch = {'images': images, 'image_sizes': sizes}
  out = jax.jit(lambda batch: network_input(config, batch))(batch)
  expected = (images - np.array(config.data.mean)) / np.array(config.data.std)
  expected[1, 2:] = expected[1, :, 5:] = expected[2] = 0
  assert out.dtype == np.float32
  np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-6)


def test_images_of_a_batch_do_not_mix():
  detector = build_detector(tiny_config())
  variables = draw(detector, images())
  before = apply(detector, variables, images())
  after = apply(detector, variables, images().at[1].multiply(2))
  assert before.class_logits.shape == (2, 8 * 12 + 4 * 6 + 2 * 3, 6)
  assert before.box_logits.shape == (2, 126, 4, 17)
  for a, b in zip(before[:2], after[:2], strict=True):
    np.testing.assert_array_equal(a[0], b[0])
    assert (a[1] != b[1]).any()


def test_bfloat16_ends_at_the_outputs():
  detectors = [
    build_detector(tiny_config(model={'dtype': d})) for d in ('float32', 'bfloat16')
  ]
  variables = draw(detectors[1], images())
  assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {np.dtype('float32')}
  full, half = (apply(d, variables, images()) for d in detectors)
  for exact, rounded in zip(full[:2], half[:2], strict=True):
    assert rounded.dtype == jnp.float32
    assert 0 < np.abs(exact - rounded).max() < 0.05 * np.abs(exact).max()
  features = jax.eval_shape(
    lambda v, x: detectors[1].apply(v, x, method='pyramid'), variables, images()
  )
  assert {f.dtype for f in features} == {jnp.dtype('bfloat16')}


def stored_bytes(detector, params):
  """What a forward pass stores for the backward one; and the results of both."""

  def total(params):
    out = detector.apply({'params': params}, images(), train=True)
    return jnp.square(out.class_logits).sum() + jnp.square(out.box_logits).sum()

  size = lambda tree: sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))
  pull = jax.eval_shape(lambda params: jax.vjp(total, params)[1], params)
  return size(pull), jax.jit(jax.value_and_grad(total))(params)


def test_remat_stores_less_and_changes_no_number():
  config = tiny_config()
  config.model.head.num_convs = 3
  detector = build_detector(config)
  params = draw(detector, images())['params']
  everything, (value, grads) = stored_bytes(detector, params)
  stored = {}
  for remat in (('stage2',), ('head',), stages.REMAT_NAMES):
    config.model.remat = remat
    again = build_detector(config)
    assert jax.tree.map(jnp.shape, draw(again, images())['params']) == jax.tree.map(
      jnp.shape, params
    )
    stored[remat], (same_value, same_grads) = stored_bytes(again, params)
    np.testing.assert_allclose(same_value, value, rtol=1e-6)
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(
        a, b, rtol=1e-6, atol=1e-6 * abs(b).max()
      ),
      same_grads,
      grads,
    )
  assert stored['stage2',] < 0.96 * everything and stored['head',] < 0.72 * everything
  assert stored[stages.REMAT_NAMES] < 0.65 * everything


def test_equal_configs_give_equal_detectors():
  config = gfl_r50_fpn_1x_coco.get_config()
  detectors = [build_detector(c) for c in (config, config.to_dict())]
  assert detectors[0] == detectors[1]
  assert len(set(detectors)) == 1
  config.model.head.num_convs = 3
  assert build_detector(config) != detectors[0]


@pytest.mark.parametrize(('box', 'outputs'), [('dirac', 1), ('gaussian', 2)])
def test_the_head_follows_the_sections_box_and_score(box, outputs):
  config = tiny_config()
  config.box = ml_collections.ConfigDict({'kind': box, 'scale': 4.0})
  config.score = ml_collections.ConfigDict({'kind': 'iou', 'weight': 1.0})
  head = build_detector(config).head
  assert (head.num_box_outputs, head.quality_branch) == (outputs, True)


def test_variables_before_training():
  config = tiny_config()
  detector = build_detector(config)
  params = init_variables(detector, jax.random.key(0))['params']
  for path, kernel in traverse_util.flatten_dict(params, sep='/').items():
    if not path.endswith('kernel'):
      continue
    fan_in, fan_out = (np.prod(kernel.shape[:2]) * n for n in kernel.shape[2:])
    part = path.split('/')[0]
    spread = {
      'backbone': np.sqrt(2 / fan_out),  # He, by the outputs
      'neck': np.sqrt(2 / (fan_in + fan_out)),  # Xavier
      'head': 0.01,
    }[part]
    error = abs(np.sqrt(np.square(kernel).mean()) / spread - 1)
    assert error < 4 / np.sqrt(2 * kernel.size), path
  out = apply(detector, {'params': params}, images())
  np.testing.assert_allclose(jax.nn.sigmoid(out.class_logits), 0.01, rtol=0.5)
  assert np.abs(out.box_logits).max() < 0.5  # close to uniform over the bins
  again = init_variables(detector, jax.random.key(0))['params']
  jax.tree.map(np.testing.assert_array_equal, params, again)


# The neck takes stages 2 to 4: from each of them a gradient could come back.
@pytest.mark.parametrize(('frozen_stages', 'frozen_leaves'), [(2, 18), (3, 27)])
def test_frozen_mask_is_true_exactly_where_the_gradient_is_zero(
  frozen_stages, frozen_leaves
):
  config = tiny_config()
  config.model.backbone.frozen_stages = frozen_stages
  detector = build_detector(config)
  params = draw(detector, images())['params']

  def total(params, images):
    out = detector.apply({'params': params}, images, train=True)
    return jnp.square(out.class_logits).sum() + jnp.square(out.box_logits).sum()

  grads, image_grad = jax.jit(jax.grad(total, argnums=(0, 1)))(params, images())
  mask = frozen_mask(params, frozen_stages)
  # The stem has 3, the first block 6, one that changes the resolution 9.
  assert jax.tree.leaves(mask).count(True) == frozen_leaves
  jax.tree.map(
    lambda frozen, g: np.testing.assert_(frozen == (not g.any())), mask, grads
  )
  assert not image_grad.any()

  assert not any(jax.tree.leaves(frozen_mask(params, 0)))


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (
      {'model': {'dtype': 'float16'}},
      r"model.dtype='float16' .*\['bfloat16', 'float32'\]",
    ),
    ({'score': {'kind': 'quality'}}, r"score.kind='quality' .*'joint'"),
    (
      {'model': {'backbone': {'kind': 'vgg'}}},
      r"backbone.kind='vgg' .*\['efficientnet_lite0', 'resnet'\]",
    ),
    ({'model': {'remat': ('stage5',)}}, r"model.remat=\('stage5',\).*'stage1'"),
    ({'box': {'kind': 'laplace'}}, r"box.kind='laplace' .*'general'"),
  ],
)
def test_unknown_kinds_are_errors(change, message):
  with pytest.raises(ValueError, match=message):
    build_detector(tiny_config(**change))


def test_the_first_variables_are_one_program_for_equal_detectors(monkeypatch):
  traced, true = [], Detector.__call__

  def counted(self, *arguments, **options):
    traced.append(self)
    return true(self, *arguments, **options)

  monkeypatch.setattr(Detector, '__call__', counted)
  config = tiny.config()
  config.model.head.prior_probability = 0.013  # no other test has it
  first, same, other = (
    init_variables(build_detector(config), jax.random.key(seed)) for seed in (0, 0, 1)
  )
  assert len(traced) == 1
  jax.tree.map(np.testing.assert_array_equal, first, same)
  kernel = lambda variables: variables['params']['head']['class_output']['kernel']
  assert np.any(kernel(first) != kernel(other))
  bias = first['params']['head']['class_output']['bias']
  np.testing.assert_allclose(jax.nn.sigmoid(bias), 0.013, rtol=1e-6)

  config.model.head.prior_probability = 0.014
  init_variables(build_detector(config), jax.random.key(0))
  assert len(traced) == 2
