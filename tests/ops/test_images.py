import jax
import numpy as np

from gfl_jax.ops.images import normalize_images

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


def test_pixels_are_normalised_and_padding_is_zero():
  images = np.random.default_rng(0).integers(0, 256, (3, 6, 8, 3)).astype(np.uint8)
  sizes = np.array([[6, 8], [2, 5], [0, 0]], np.int32)
  out = jax.jit(lambda *x: normalize_images(*x, mean=MEAN, std=STD))(images, sizes)
  expected = (images - np.array(MEAN)) / np.array(STD)
  expected[1, 2:] = expected[1, :, 5:] = expected[2] = 0
  assert out.dtype == np.float32
  np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-6)


def test_what_lies_on_the_canvas_around_an_image_does_not_matter():
  images = np.zeros((2, 4, 4, 3), np.uint8)
  images[1, 2:] = 255
  out = normalize_images(images, np.array([[2, 4], [2, 4]]), mean=MEAN, std=STD)
  np.testing.assert_array_equal(out[0], out[1])
