import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gfl_jax.models import fpn
from tests.models.draws import draw

CHANNELS = (512, 1024, 2048)


def shapes(neck, height, width):
  features = [
    jnp.zeros((1, -(-height // s), -(-width // s), c))
    for s, c in zip((8, 16, 32), CHANNELS, strict=True)
  ]
  return jax.eval_shape(neck.init_with_output, jax.random.key(0), features)


@pytest.mark.parametrize('num_levels', [3, 4, 5])
def test_levels_halve_and_round_up(num_levels):
  levels, variables = shapes(fpn.FPN(256, num_levels), 65, 160)
  sizes = [(-(-65 // s), 160 // s) for s in (8, 16, 32)] + [(2, 3), (1, 2)]
  assert [x.shape for x in levels] == [(1, *s, 256) for s in sizes[:num_levels]]
  lateral = sum(CHANNELS) * 256 + 3 * 256
  output = num_levels * (9 * 256 * 256 + 256)
  assert sum(leaf.size for leaf in jax.tree.leaves(variables)) == lateral + output


@pytest.mark.parametrize('size', range(1, 14))
def test_upsampling_equals_torchs_nearest_neighbour(size):
  half = -(-size // 2)
  x = np.arange(half * half, dtype=np.float32).reshape(1, half, half, 1)
  source = np.arange(size) * half // size  # torch: floor(i * input / output)
  actual = fpn.upsample_nearest(jnp.asarray(x), (size, size))
  np.testing.assert_array_equal(actual, x[:, source][:, :, source])


def test_a_level_moves_only_itself_and_the_levels_below_or_made_of_it():
  neck = fpn.FPN(4, 5)
  features = [jnp.zeros((1, n, n, 2)) for n in (8, 4, 2)]
  variables = draw(neck, features)
  apply = jax.jit(neck.apply)
  before = apply(variables, features)
  for i, moved in enumerate([(0,), (0, 1), (0, 1, 2, 3, 4)]):
    changed = [f + (j == i) for j, f in enumerate(features)]
    after = apply(variables, changed)
    differs = [bool(jnp.any(a != b)) for a, b in zip(before, after, strict=True)]
    assert tuple(np.flatnonzero(differs)) == moved


def test_bad_sizes_are_errors():
  with pytest.raises(ValueError, match='neck.num_levels=6'):
    shapes(fpn.FPN(8, 6), 64, 64)
  with pytest.raises(ValueError, match=r'\(3, 3\).*size=\(7, 6\)'):
    fpn.upsample_nearest(jnp.zeros((1, 3, 3, 1)), (7, 6))
