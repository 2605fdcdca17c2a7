"""Convolutions in the form that is fast on each platform; the result is the same."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from gfl_jax.ops.arrays import ArrayLike


def image_conv(
  images: Float[ArrayLike, 'b h w c'],
  kernel: Float[ArrayLike, 'k k c n'],
  window_strides: Sequence[int],
  padding: Sequence[tuple[int, int]],
  **settings: Any,
) -> Float[Array, 'b h2 w2 n']:
  """lax.conv_general_dilated with stride 2, for images of few channels.

  A TPU pads 3 channels to many. So there the image is split by even and odd rows and
  columns into four images, whose channels are put together (space to depth), and
  convolved with a kernel of half the size and stride 1: the same sums in another order.
  Every other platform, and ONNX, gets the convolution itself.

  Args:
    images: NHWC.
    kernel: HWIO, square, of odd size.
    window_strides: (2, 2).
    padding: half of the kernel's size, on all sides.
    settings: other arguments of lax.conv_general_dilated, as Flax passes them.

  Raises:
    ValueError: another stride or padding, a dilation or groups.

  Source: the space-to-depth stem of MLPerf's ResNet-50 for TPUs.
  """
  half = kernel.shape[0] // 2
  dilations = [settings.get(f'{side}_dilation') or (1,) for side in ('lhs', 'rhs')]
  if (
    kernel.shape[0] != kernel.shape[1]
    or kernel.shape[0] != 2 * half + 1
    or tuple(window_strides) != (2, 2)
    or [tuple(pair) for pair in padding] != [(half, half)] * 2
    or any(dilation != 1 for pair in dilations for dilation in pair)
    or settings.get('feature_group_count', 1) != 1
  ):
    raise ValueError(
      'image_conv needs stride 2, a square kernel of odd size, half of it as padding,'
      f' and no dilation or groups: {kernel.shape=}, {window_strides=}, {padding=},'
      f' {settings=}'
    )
  settings |= dict(window_strides=window_strides, padding=padding)
  plain = functools.partial(lax.conv_general_dilated, **settings)
  return lax.platform_dependent(images, kernel, tpu=space_to_depth_conv, default=plain)


def space_to_depth_conv(
  images: Float[ArrayLike, 'b h w c'], kernel: Float[ArrayLike, 'k k c n']
) -> Float[Array, 'b h2 w2 n']:
  """`image_conv` for TPUs, on any platform."""
  _, height, width, channels = images.shape
  even = ((0, 0), (0, height % 2), (0, width % 2), (0, 0))
  images = jnp.pad(images, even)
  # Slices, because reshape and transpose would move single numbers.
  quarters = [
    lax.slice_in_dim(
      lax.slice_in_dim(images, row, None, stride=2, axis=1), column, None, 2, axis=2
    )
    for row in (0, 1)
    for column in (0, 1)
  ]
  # For output i, row r of the kernel reads image row 2 i + r - half. This is row
  # i + (r - half) // 2 of the even or the odd rows, by (r - half) % 2. With a row of
  # zeros before or after, the kernel's rows form pairs of even and odd.
  size, half = kernel.shape[0], kernel.shape[0] // 2
  before, cells = half % 2, (size + 1) // 2
  kernel = jnp.pad(kernel, ((before, 1 - before), (before, 1 - before), (0, 0), (0, 0)))
  kernel = kernel.reshape(cells, 2, cells, 2, channels, -1).transpose(0, 2, 1, 3, 4, 5)
  first = (half + before) // 2
  return lax.conv_general_dilated(
    jnp.concatenate(quarters, axis=-1),
    kernel.reshape(cells, cells, 4 * channels, -1),
    window_strides=(1, 1),
    padding=[(first, cells - 1 - first)] * 2,
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
  )


def depthwise_conv(
  images: Float[ArrayLike, 'b h w c'],
  kernel: Float[ArrayLike, 'k l 1 c'],
  window_strides: Sequence[int],
  padding: str | Sequence[tuple[int, int]],
  **settings: Any,
) -> Float[Array, 'b h2 w2 c']:
  """lax.conv_general_dilated with one filter per channel.

  On CPUs XLA's grouped convolution is far slower than a sum of shifted images, one for
  each tap of the filter. So CPUs get this sum, and every other platform and ONNX the
  convolution. A StableHLO program for several platforms holds both and runs the one of
  its platform.

  Args:
    images: NHWC.
    kernel: HWIO.
    window_strides: (vertical, horizontal).
    padding: 'SAME', 'VALID', or (before, after) of height and of width.
    settings: other arguments of lax.conv_general_dilated, as Flax passes them.

  Raises:
    ValueError: a dilation.
  """
  for name in ('lhs_dilation', 'rhs_dilation'):
    if any(dilation != 1 for dilation in settings.get(name) or ()):
      raise ValueError(f'depthwise_conv has no dilation: {name}={settings[name]}')
  strides = tuple(window_strides)
  if isinstance(padding, str):
    padding = lax.padtype_to_pads(images.shape[1:3], kernel.shape[:2], strides, padding)
  taps = functools.partial(_sum_of_taps, strides, tuple(map(tuple, padding)))
  settings |= dict(window_strides=strides, padding=padding)
  grouped = functools.partial(lax.conv_general_dilated, **settings)
  return lax.platform_dependent(images, kernel, cpu=taps, default=grouped)


Sizes = tuple[int, int]
Padding = tuple[tuple[int, int], ...]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _sum_of_taps(strides: Sizes, padding: Padding, images: Array, kernel: Array):
  padded = jnp.pad(images, ((0, 0), *padding, (0, 0)))
  return _correlate(padded, kernel, strides).astype(images.dtype)


def _forward(strides, padding, images, kernel):
  return _sum_of_taps(strides, padding, images, kernel), (images, kernel)


def _backward(strides, padding, saved, grad):
  images, kernel = saved
  size = kernel.shape[:2]
  # The images' gradient: that of the outputs, spread `stride` apart and correlated with
  # the mirrored filter.
  margins = []
  for n, k, stride, cells, (before, _) in zip(
    images.shape[1:3], size, strides, grad.shape[1:3], padding, strict=True
  ):
    first = k - 1 - before
    margins.append((first, n + k - 1 - first - ((cells - 1) * stride + 1), stride - 1))
  spread = lax.pad(grad, grad.dtype.type(0), ((0, 0, 0), *margins, (0, 0, 0)))
  images_grad = _correlate(spread, kernel[::-1, ::-1], (1, 1))

  # A tap's gradient is a sum over images and cells, which is fast as a matrix product.
  # The loop has one body for all taps, because unrolled it compiles for long.
  padded = jnp.pad(images, ((0, 0), *padding, (0, 0))).astype(jnp.float32)
  exact, cells = grad.astype(jnp.float32), grad.shape[1:3]
  ones = jnp.ones(exact[..., 0].size, jnp.float32)

  def of_tap(tap):
    part = _shifted(padded, tap // size[1], tap % size[1], cells, strides)
    return ones @ jnp.reshape(part * exact, (ones.size, -1))

  kernel_grad = lax.map(of_tap, jnp.arange(size[0] * size[1])).reshape(kernel.shape)
  return images_grad.astype(images.dtype), kernel_grad.astype(kernel.dtype)


_sum_of_taps.defvjp(_forward, _backward)


def _correlate(padded: Array, kernel: Array, strides: Sizes) -> Array:
  """Sum over the filter's taps of the shifted images, in float32."""
  rows, columns = kernel.shape[:2]
  free = padded.shape[1] - rows, padded.shape[2] - columns
  cells = free[0] // strides[0] + 1, free[1] // strides[1] + 1
  kernel = kernel.astype(jnp.float32)
  total = jnp.zeros((), jnp.float32)
  for row in range(rows):
    for column in range(columns):
      part = _shifted(padded, row, column, cells, strides)
      total = total + part * kernel[row, column][None, None]
  return total


def _shifted(padded: Array, row, column, cells, strides: Sizes) -> Array:
  """[B, rows, columns, C]: what the tap (row, column) sees at each cell."""
  extent = [(n - 1) * stride + 1 for n, stride in zip(cells, strides, strict=True)]
  sizes = (padded.shape[0], *extent, padded.shape[3])
  part = lax.dynamic_slice(padded, (0, row, column, 0), sizes)
  return part[:, :: strides[0], :: strides[1]]
