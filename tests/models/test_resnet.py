import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gfl_jax.models import resnet
from tests.models.draws import draw

TINY = dict(depth=10, widths=(4, 4, 4, 8), norm='group_norm', norm_groups=2)


def shapes(backbone, height, width):
  image = jax.ShapeDtypeStruct((2, height, width, 3), jnp.float32)
  features, variables = jax.eval_shape(
    backbone.init_with_output, jax.random.key(0), image
  )
  return [f.shape for f in features], variables


@pytest.mark.parametrize(
  ('depth', 'num_params', 'last_channels'),
  # torchvision's counts less the classifier's.
  [
    (18, 11_689_512 - 513_000, 512),
    (34, 21_797_672 - 513_000, 512),
    (50, 25_557_032 - 2_049_000, 2048),
    (101, 44_549_160 - 2_049_000, 2048),
  ],
)
def test_parameters_are_torchvisions(depth, num_params, last_channels):
  features, variables = shapes(resnet.ResNet(depth), 64, 96)
  assert sum(leaf.size for leaf in jax.tree.leaves(variables['params'])) == num_params
  assert features[-1] == (2, 2, 3, last_channels)


def test_parameters_of_resnext_are_torchvisions():
  resnext = resnet.ResNet(50, groups=32, group_width=4)
  features, variables = shapes(resnext, 64, 96)
  # resnext50_32x4d's count less the classifier's.
  num_params = sum(leaf.size for leaf in jax.tree.leaves(variables['params']))
  assert num_params == 25_028_904 - 2_049_000
  kernel = variables['params']['stage4']['block2']['conv2']['kernel']
  assert kernel.shape == (3, 3, 1024 // 32, 1024)
  assert features[-1] == (2, 2, 3, 2048)


@pytest.mark.parametrize('stem', ['conv7', 'patch4'])
@pytest.mark.parametrize('size', [(64, 96), (65, 97), (33, 31), (1, 1)])
def test_level_sizes_round_up(stem, size):
  features, _ = shapes(resnet.ResNet(**TINY, stem=stem), *size)
  expected = [tuple(-(-n // stride) for n in size) for stride in (4, 8, 16, 32)]
  assert [f[1:3] for f in features] == expected


def test_max_pooling_has_a_gradient_in_bfloat16():
  backbone = resnet.ResNet(**TINY, dtype=jnp.bfloat16)
  images = jax.random.normal(jax.random.key(1), (1, 32, 32, 3))
  params = draw(backbone, images)['params']
  total = lambda p: backbone.apply({'params': p}, images)[0].astype(jnp.float32).sum()
  grad = jax.jit(jax.grad(total))(params)['stem']['conv']['kernel']
  assert grad.dtype == jnp.float32
  assert np.isfinite(grad).all() and np.abs(grad).sum() > 0


@pytest.mark.parametrize(
  ('setting', 'message'),
  [
    ({'depth': 20}, r'backbone.depth=20 .*\[10, 18, 34, 50, 101\]'),
    ({'stem': 'conv3'}, "backbone.stem='conv3'.*'conv7', 'patch4'"),
    ({'norm': 'batch_norm'}, "backbone.norm='batch_norm'.*'group_norm'"),
    ({'frozen_stages': 5}, 'backbone.frozen_stages=5'),
    ({'widths': (8, 8)}, r'backbone.widths=\(8, 8\)'),
    ({'norm_groups': 3}, 'norm_groups=3 .* 4 channels'),
    ({'groups': 32}, 'backbone.groups=32, group_width=64.*depth=10'),
    ({'depth': 50, 'group_width': 8}, 'group_width=8, widths=.*at least 1'),
  ],
)
def test_bad_settings_are_errors(setting, message):
  with pytest.raises(ValueError, match=message):
    shapes(resnet.ResNet(**(TINY | setting)), 32, 32)
