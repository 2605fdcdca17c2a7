"""Images on the device: from uint8 to the network's input."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from gfl_jax.ops.types import ArrayLike


def normalize_images(
  images: UInt8[ArrayLike, 'b h w 3'],
  image_sizes: Int[ArrayLike, 'b 2'],
  *,
  mean: Sequence[float],
  std: Sequence[float],
) -> Float[Array, 'b h w 3']:
  """(images - mean) / std inside the images, zeros on the canvas around them.

  Zeros are the mean colour: padding comes after normalising, as in the recipe.

  Args:
    images: RGB, each at the top left of its canvas.
    image_sizes: (height, width) of each image on its canvas, in pixels.
    mean: per channel, in [0, 255].
    std: per channel, in [0, 255].
  """
  _, height, width, _ = images.shape
  means, stds = (np.asarray(x, np.float32).reshape(1, 1, 1, 3) for x in (mean, std))
  heights, widths = jnp.asarray(image_sizes)[:, :, None].transpose(1, 0, 2)
  rows = np.arange(height)[None] < heights
  columns = np.arange(width)[None] < widths
  inside = rows[:, :, None, None] & columns[:, None, :, None]
  return jnp.where(inside, (images - means) / stds, 0)
