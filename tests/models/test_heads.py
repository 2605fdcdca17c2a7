import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gfl_jax.models import build_detector, heads
from tests import golden, golden_weights

GOLDEN = golden.load('head')
HEAD = build_detector(golden_weights.config('head')).head
APPLY = jax.jit(HEAD.clone(parent=None).apply)


def features():
  return [jnp.asarray(GOLDEN[f'feats/{i}'].transpose(0, 2, 3, 1)) for i in range(5)]


def golden_logits(name):
  """[2, A, channels]: level after level, row by row."""
  maps = [GOLDEN[f'{name}/{i}'].transpose(0, 2, 3, 1) for i in range(5)]
  return np.concatenate([m.reshape(2, -1, m.shape[-1]) for m in maps], axis=1)


@pytest.fixture
def variables():
  return {'params': golden_weights.variables('head')['params']['head']}


def test_outputs_equal_the_authors(variables):
  out = APPLY(variables, features())
  assert out.quality_logits is None
  boxes = golden_logits('reg').reshape(2, -1, 4, 17)
  np.testing.assert_allclose(out.class_logits, golden_logits('cls'), atol=1e-5)
  np.testing.assert_allclose(out.box_logits, boxes, atol=1e-5)


def test_a_level_has_its_own_scale(variables):
  params = dict(variables['params'])
  params['scale1'] = 2 * params['scale1']
  before, after = (
    APPLY({'params': p}, features()) for p in (variables['params'], params)
  )
  level1 = np.s_[:, 24 * 32 : 24 * 32 + 12 * 16]
  expected = np.array(before.box_logits)
  expected[level1] *= 2
  np.testing.assert_array_equal(after.box_logits, expected)
  np.testing.assert_array_equal(after.class_logits, before.class_logits)


def test_number_of_parameters():
  head = heads.DenseHead(num_classes=80, num_box_outputs=17)
  levels = [jax.ShapeDtypeStruct((1, n, n, 256), jnp.float32) for n in (8, 4, 2, 1, 1)]
  variables = jax.eval_shape(head.init, jax.random.key(0), levels)['params']
  assert sum(leaf.size for leaf in jax.tree.leaves(variables)) == 5_063_833
  assert variables['class_output']['kernel'].shape == (3, 3, 256, 80)
  assert variables['box_output']['kernel'].shape == (3, 3, 256, 68)


def test_a_prior_probability_out_of_range_is_an_error():
  head = heads.DenseHead(3, 5, prior_probability=1.0)
  with pytest.raises(ValueError, match='head.prior_probability=1.0'):
    head.init(jax.random.key(0), [jnp.zeros((1, 1, 1, 256))])
