import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gfl_jax.models import build_detector
from gfl_jax.models.resnet import ResNet
from gfl_jax.weights import mmdet
from tests import golden_weights

NAME = 'model_r18'


def r18_config():
  return golden_weights.config(NAME)


def shapes(module):
  image = jnp.zeros((1, 32, 32, 3))
  return jax.eval_shape(module.init, jax.random.key(0), image)


def torchvision_state_dict():
  entries = {
    name.removeprefix('backbone.'): value
    for name, value in golden_weights.state_dict(NAME).items()
    if name.startswith('backbone.')
  }
  return entries | {'fc.weight': np.zeros((1000, 512)), 'fc.bias': np.zeros(1000)}


@pytest.mark.parametrize('name', ['model_r18', 'model_r50'])
def test_golden_weights_are_the_authors(name):
  entries, checksums = golden_weights.state_dict(name), golden_weights.checksums(name)
  assert entries.keys() == checksums.keys()
  for key, value in entries.items():
    sums = value.sum(dtype=float), np.abs(value).sum(dtype=float)
    np.testing.assert_allclose(sums, checksums[key], atol=1e-12 * sums[1], err_msg=key)


def test_mmdet_fills_every_leaf_and_comes_back():
  entries = golden_weights.state_dict(NAME)
  variables = mmdet.from_mmdet(entries, r18_config())
  expected = shapes(build_detector(r18_config()))
  assert jax.tree.map(jnp.shape, variables) == jax.tree.map(jnp.shape, expected)
  back = mmdet.to_mmdet(variables)
  left_out = entries.keys() - back.keys()
  assert {name.rsplit('.', 1)[-1] for name in left_out} == {
    'num_batches_tracked',
    'project',
  }
  for name, value in back.items():
    np.testing.assert_array_equal(value, entries[name], err_msg=name)


def test_torchvision_fills_the_same_backbone():
  backbone = mmdet.from_torchvision_resnet(torchvision_state_dict(), 18)
  assert jax.tree.map(jnp.shape, backbone) == jax.tree.map(
    jnp.shape, shapes(ResNet(18))
  )
  whole = golden_weights.variables(NAME)
  for collection, tree in backbone.items():
    jax.tree.map(np.testing.assert_array_equal, tree, whole[collection]['backbone'])


def test_names_and_shapes_that_differ_are_named():
  entries = dict(golden_weights.state_dict(NAME))
  del entries['neck.fpn_convs.0.conv.bias']
  entries['bbox_head.gfl_cls.bias'] = np.zeros(20)
  entries['roi_head.weight'] = np.zeros((3, 2))
  with pytest.raises(ValueError) as error:
    mmdet.from_mmdet(entries, r18_config())
  message = str(error.value)
  assert message.startswith('3 names of the state dict')
  for line in (
    'neck.fpn_convs.0.conv.bias: missing, the model has params/neck/output0/bias',
    'bbox_head.gfl_cls.bias: (20,) here, (80,) in the model',
    'roi_head.weight: (3, 2), not in the model',
  ):
    assert line in message
  assert message.index('gfl_cls') < message.index('roi_head') < message.index('fpn')


def test_a_long_list_of_differences_ends_after_ten():
  with pytest.raises(ValueError, match='names of the state dict') as error:
    mmdet.from_torchvision_resnet(torchvision_state_dict(), 50)
  assert len(str(error.value).splitlines()) == 11


@pytest.mark.parametrize(
  ('values', 'message'),
  [
    (np.full(80, np.nan), 'gfl_cls.bias of the state dict has nan or infinite'),
    (np.full(80, -np.inf), 'gfl_cls.bias of the state dict has nan or infinite'),
    (np.zeros(80, np.int8), 'gfl_cls.bias of the state dict is of int8'),
  ],
)
def test_parameters_that_are_no_numbers_are_named(values, message):
  entries = golden_weights.state_dict(NAME) | {'bbox_head.gfl_cls.bias': values}
  with pytest.raises(ValueError, match=message):
    mmdet.from_mmdet(entries, r18_config())


def test_names_of_the_authors_first_code_are_the_same_but_for_the_bins():
  entries = dict(golden_weights.state_dict(NAME))
  bins = entries.pop('bbox_head.integral.project')
  entries['bbox_head.distribution_project.project'] = bins
  jax.tree.map(
    np.testing.assert_array_equal,
    mmdet.from_mmdet(entries, r18_config()),
    golden_weights.variables(NAME),
  )


def test_x101_has_the_names_and_shapes_of_mmdets():
  """ResNeXt-101 32x4d: 32 groups; 4 channels in each at a width of 64."""
  config = golden_weights.config('model_r50')
  config.model.backbone.update(depth=101, groups=32, group_width=4)
  zeros = lambda x: np.broadcast_to(np.float32(0), x.shape)
  entries = mmdet.to_mmdet(jax.tree.map(zeros, shapes(build_detector(config))))
  assert entries['backbone.layer1.0.conv2.weight'].shape == (128, 4, 3, 3)
  assert entries['backbone.layer3.22.conv2.weight'].shape == (512, 16, 3, 3)
  assert entries['backbone.layer4.2.conv3.weight'].shape == (2048, 1024, 1, 1)
  mmdet.from_mmdet(entries, config)


def test_deformable_convolutions_are_named():
  entries = dict(golden_weights.state_dict(NAME))
  entries['backbone.layer2.0.conv2.conv_offset.weight'] = np.zeros((27, 128, 3, 3))
  message = r'conv2\.conv_offset\.weight: \(3, 3, 128, 27\), not in the model'
  with pytest.raises(ValueError, match=message):
    mmdet.from_mmdet(entries, r18_config())


@pytest.mark.parametrize('project', [np.arange(16.0), np.arange(17.0) / 2])
@pytest.mark.parametrize('of', ['integral', 'distribution_project'])
def test_other_bins_are_an_error(project, of):
  entries = dict(golden_weights.state_dict(NAME))
  entries[f'bbox_head.{of}.project'] = project
  with pytest.raises(ValueError, match='trained with bins at'):
    mmdet.from_mmdet(entries, r18_config())
