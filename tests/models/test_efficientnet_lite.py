import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gfl_jax.models.efficientnet_lite import EfficientNetLite0
from tests.models.draws import draw


def shapes(backbone, height, width):
  image = jax.ShapeDtypeStruct((2, height, width, 3), jnp.float32)
  return jax.eval_shape(backbone.init_with_output, jax.random.key(0), image)


def test_sizes_are_the_originals():
  features, variables = shapes(EfficientNetLite0(), 224, 224)
  assert [f.shape for f in features] == [
    (2, 56, 56, 24),
    (2, 28, 28, 40),
    (2, 14, 14, 112),
    (2, 7, 7, 320),
  ]
  params = variables['params']
  # 4,652,008 of the classifier less its head: 1x1 convolution, its norm, 1000 classes.
  head = 320 * 1280 + 2 * 1280 + 1281 * 1000
  count = lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree))
  assert count(params) == 4_652_008 - head
  blocks = [name for stage in params if stage != 'stem' for name in params[stage]]
  assert sorted(blocks) == sorted(f'block{i}' for i in range(16))
  assert 'expand' not in params['stage1']['block0']


@pytest.mark.parametrize('size', [(240, 320), (65, 97), (33, 31), (1, 1)])
def test_level_sizes_round_up(size):
  features, _ = shapes(EfficientNetLite0(), *size)
  expected = [tuple(-(-n // stride) for n in size) for stride in (4, 8, 16, 32)]
  assert [f.shape[1:3] for f in features] == expected


@pytest.mark.parametrize(('size', 'middle'), [(64, 4 * 6 + 3), (65, 4 * 6)])
def test_cells_look_further_to_the_lower_right_on_even_sizes(size, middle):
  backbone = EfficientNetLite0()
  variables = draw(backbone, jnp.zeros((1, 32, 32, 3)))
  # Equal positive weights: the gradient is the cell's view itself, which is symmetric.
  variables = jax.tree.map(lambda leaf: jnp.full_like(leaf, 0.01), variables)
  cell = lambda images: backbone.apply(variables, images)[0][0, 6, 6].sum()
  seen = jax.jit(jax.grad(cell))(jnp.zeros((1, size, size, 3)))
  rows = np.flatnonzero(np.abs(seen).sum((0, 2, 3)))
  assert (rows[0] + rows[-1]) / 2 == middle


def test_images_of_a_batch_do_not_mix():
  backbone = EfficientNetLite0(norm='group_norm')
  images = jax.random.normal(jax.random.key(1), (2, 64, 64, 3))
  variables = draw(backbone, images)
  apply = jax.jit(backbone.apply)
  before, after = apply(variables, images), apply(variables, images.at[1].multiply(2))
  for a, b in zip(before, after, strict=True):
    np.testing.assert_array_equal(a[0], b[0])
    assert (a[1] != b[1]).any()


@pytest.mark.parametrize(
  ('setting', 'message'),
  [
    ({'norm': 'batch_norm'}, "backbone.norm='batch_norm'.*'group_norm'"),
    ({'norm': 'group_norm', 'norm_groups': 32}, 'norm_groups=32'),
    ({'frozen_stages': 5}, 'backbone.frozen_stages=5'),
  ],
)
def test_bad_settings_are_errors(setting, message):
  with pytest.raises(ValueError, match=message):
    shapes(EfficientNetLite0(**setting), 32, 32)
