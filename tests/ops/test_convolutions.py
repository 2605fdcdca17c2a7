import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from gfl_jax.ops import convolutions
from gfl_jax.ops.convolutions import depthwise_conv

DIMENSIONS = ('NHWC', 'HWIO', 'NHWC')
GROUPED = dict(dimension_numbers=DIMENSIONS, feature_group_count=4)


def draw(shape, seed=0):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


@pytest.mark.parametrize('taps', [1, 3, 5, 7])
@pytest.mark.parametrize('size', [(8, 12), (9, 7), (1, 2)])
def test_the_space_to_depth_form_has_the_same_values_and_gradients(taps, size):
  images, kernel = draw((2, *size, 3)), draw((taps, taps, 3, 4), seed=1)
  half = taps // 2

  def plain(images, kernel):
    return lax.conv_general_dilated(
      images, kernel, (2, 2), [(half, half)] * 2, dimension_numbers=DIMENSIONS
    )

  expected, expected_vjp = jax.vjp(plain, images, kernel)
  found, vjp = jax.vjp(convolutions.space_to_depth_conv, images, kernel)
  np.testing.assert_allclose(found, expected, atol=2e-5)
  weights = draw(expected.shape, seed=2)
  for a, b in zip(vjp(weights), expected_vjp(weights), strict=True):
    np.testing.assert_allclose(a, b, atol=5e-5)


def test_each_platform_gets_its_form():
  def conv(images, kernel):
    return convolutions.image_conv(
      images, kernel, (2, 2), [(3, 3)] * 2, dimension_numbers=DIMENSIONS
    )

  arguments = draw((1, 16, 16, 3)), draw((7, 7, 3, 4))
  exported = {
    name: jax.export.export(jax.jit(conv), platforms=[name])(*arguments).mlir_module()
    for name in ('cpu', 'cuda', 'tpu')
  }
  assert 'tensor<4x4x12x4xf32>' in exported['tpu']
  assert 'tensor<4x4x12x4xf32>' not in exported['cpu'] + exported['cuda']
  grad = jax.jit(jax.grad(lambda *x: jnp.square(conv(*x)).sum(), argnums=1))
  assert np.isfinite(grad(*arguments)).all()


@pytest.mark.parametrize(
  'change',
  [
    {'window_strides': (1, 1)},
    {'padding': [(0, 0), (0, 0)]},
    {'rhs_dilation': (2, 2)},
    {'feature_group_count': 3},
  ],
)
def test_another_convolution_is_refused(change):
  settings = {'window_strides': (2, 2), 'padding': [(3, 3)] * 2} | change
  with pytest.raises(ValueError, match='stride 2.*window_strides'):
    convolutions.image_conv(
      jnp.zeros((1, 8, 8, 3)), jnp.zeros((7, 7, 3, 4)), **settings
    )


@pytest.mark.parametrize(
  ('size', 'taps', 'stride', 'padding'),
  [
    ((7, 6), 3, 1, 'SAME'),
    ((8, 7), 5, 2, 'SAME'),
    ((1, 1), 5, 2, 'SAME'),
    ((9, 8), 3, 2, 'VALID'),  # the last column is seen by no tap
    ((6, 8), 3, 2, ((1, 1), (0, 2))),
  ],
)
def test_values_and_gradients_are_those_of_the_grouped_convolution(
  size, taps, stride, padding
):
  images, kernel = draw((3, *size, 4)), draw((taps, taps, 1, 4), seed=1)

  def outputs(conv, images, kernel):
    return conv(images, kernel, (stride, stride), padding, **GROUPED)

  shape = jax.eval_shape(
    lambda *x: outputs(lax.conv_general_dilated, *x), images, kernel
  ).shape
  weights = draw(shape, seed=2)

  @jax.jit
  def both(images, kernel):
    return [
      jax.vjp(lambda *x, conv=conv: outputs(conv, *x), images, kernel)
      for conv in (depthwise_conv, lax.conv_general_dilated)
    ]

  (ours, our_vjp), (expected, expected_vjp) = both(images, kernel)
  np.testing.assert_allclose(ours, expected, atol=1e-5)
  for a, b in zip(our_vjp(weights), expected_vjp(weights), strict=True):
    np.testing.assert_allclose(a, b, atol=2e-5)


def test_bfloat16_is_summed_in_float32():
  images = draw((1, 4, 4, 4)).astype(jnp.bfloat16)
  kernel = draw((3, 3, 1, 4), seed=1).astype(jnp.bfloat16)
  out = depthwise_conv(images, kernel, (1, 1), 'SAME', **GROUPED)
  exact = lax.conv_general_dilated(
    images.astype(jnp.float32), kernel.astype(jnp.float32), (1, 1), 'SAME', **GROUPED
  )
  assert out.dtype == jnp.bfloat16
  np.testing.assert_allclose(out.astype(jnp.float32), exact, rtol=2**-8, atol=1e-5)


def test_one_exported_program_serves_every_platform():
  images = jax.ShapeDtypeStruct(jax.export.symbolic_shape('b, 4, 4, 4'), jnp.float32)
  kernel = jax.ShapeDtypeStruct((3, 3, 1, 4), jnp.float32)
  conv = jax.jit(lambda x, k: depthwise_conv(x, k, (2, 2), 'SAME', **GROUPED))
  exported = jax.export.export(conv, platforms=('cpu', 'cuda', 'tpu'))(images, kernel)
  inputs = draw((3, 4, 4, 4)), draw((3, 3, 1, 4), seed=1)
  np.testing.assert_allclose(exported.call(*inputs), conv(*inputs), rtol=1e-6)
  assert 'feature_group_count = 4' in exported.mlir_module()


def test_a_dilation_is_an_error():
  with pytest.raises(ValueError, match=r'rhs_dilation=\(2, 2\)'):
    depthwise_conv(
      draw((1, 4, 4, 4)), draw((3, 3, 1, 4)), (1, 1), 'SAME', rhs_dilation=(2, 2)
    )
