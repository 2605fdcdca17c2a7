"""Photographs of any kind as 8-bit RGB, on the canvas that evaluation gives them."""

import warnings

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from gfl_jax.inference.preprocessing import batch_of, place, to_rgb
from tests.data import sets

GREY = np.arange(0, 240, 2, dtype=np.uint8).reshape(10, 12)
RGB = np.random.default_rng(0).integers(0, 256, (10, 12, 3), np.uint8)


def stacked(gray):
  return np.repeat(gray[..., None], 3, axis=2)


def config(**changes):
  return ConfigDict({'data': sets.config(**changes)})


@pytest.mark.parametrize(
  'image',
  [
    Image.fromarray(GREY),
    Image.fromarray(GREY).convert('LA'),
    Image.fromarray(GREY).convert('P'),
    Image.fromarray(GREY).convert('RGBA'),
    Image.fromarray(GREY.astype(np.uint16) * 257),
    Image.fromarray(GREY.astype(np.int32) * 257),
  ],
  ids=lambda image: image.mode,
)
def test_every_mode_is_the_same_picture(image, tmp_path):
  np.testing.assert_array_equal(to_rgb(image), stacked(GREY))
  if image.mode != 'I':  # Pillow writes no 32-bit PNG
    image.save(tmp_path / 'image.png')
    np.testing.assert_array_equal(to_rgb(tmp_path / 'image.png'), stacked(GREY))


def test_other_modes():
  black_and_white = Image.fromarray(GREY > 100)
  np.testing.assert_array_equal(
    to_rgb(black_and_white), stacked(np.where(GREY > 100, 255, 0))
  )
  for mode in ('CMYK', 'YCbCr', 'HSV'):
    found = to_rgb(Image.fromarray(RGB).convert(mode)).astype(int)
    assert np.abs(found - RGB).max() < 12 and np.abs(found - RGB).mean() < 2
  # Of 16 bits the upper ones count: not the range that the picture happens to have.
  dark = Image.fromarray(np.full((2, 3), 0x12FF, np.uint16))
  assert (to_rgb(dark) == 0x12).all()


@pytest.mark.parametrize(
  'array', [GREY, GREY[..., None], stacked(GREY), stacked(GREY)[:, :, ::-1]]
)
def test_every_form_of_array_is_the_same_picture(array):
  np.testing.assert_array_equal(to_rgb(array), stacked(GREY))


def test_what_is_transparent_is_seen_over_white(tmp_path):
  opacity = np.full(GREY.shape, 255, np.uint8)
  opacity[0], opacity[1] = 0, 128
  rgba = np.concatenate([RGB, opacity[..., None]], -1)
  found = to_rgb(rgba)
  assert (found[0] == 255).all()
  np.testing.assert_allclose(found[1], (RGB[1] * 128.0 + 255 * 127) / 255, atol=1)
  np.testing.assert_array_equal(found[2:], RGB[2:])

  palette = Image.fromarray(GREY).convert('P')
  palette.save(tmp_path / 'p.png', transparency=int(np.asarray(palette)[0, 5]))
  expected = stacked(GREY)
  expected[0, 5] = 255
  np.testing.assert_array_equal(to_rgb(tmp_path / 'p.png'), expected)


# What the camera stored, of an upright picture, for the orientations of EXIF.
STORED = {
  1: lambda x: x,
  2: lambda x: x[:, ::-1],
  3: lambda x: x[::-1, ::-1],
  4: lambda x: x[::-1],
  5: lambda x: x.swapaxes(0, 1),
  6: lambda x: np.rot90(x),
  7: lambda x: np.rot90(x[:, ::-1], -1),
  8: lambda x: np.rot90(x, -1),
}


@pytest.mark.parametrize('orientation', STORED)
def test_exif_turns_the_picture_upright(orientation, tmp_path):
  exif = Image.Exif()
  exif[0x0112] = orientation
  stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](RGB)))
  stored.save(tmp_path / 'turned.png', exif=exif)
  np.testing.assert_array_equal(to_rgb(tmp_path / 'turned.png'), RGB)


@pytest.mark.parametrize(
  'size, canvas, covered',
  [
    ((480, 640), (800, 1344), (800, 1067)),
    ((640, 480), (1344, 800), (1067, 800)),
    ((500, 500), (800, 1344), (800, 800)),
    ((1, 1), (800, 1344), (800, 800)),
    ((200, 10_000), (800, 1344), (27, 1333)),
    ((10_000, 200), (1344, 800), (1333, 27)),
    ((10_000, 1), (1344, 800), (1333, 1)),
  ],
)
def test_an_image_of_any_size_is_placed(size, canvas, covered):
  wide = config(canvas=(800, 1344), short_side=(640, 800), max_long_side=1333)
  placed = place(np.full((*size, 3), 200, np.uint8), wide)
  assert placed.canvas.shape == (*canvas, 3)
  np.testing.assert_array_equal(placed.size, covered)
  np.testing.assert_allclose(placed.scale, np.divide(covered, size)[::-1], rtol=1e-6)
  assert (placed.canvas[: covered[0], : covered[1]] == 200).all()
  assert placed.canvas.sum(dtype=np.int64) == 3 * 200 * covered[0] * covered[1]


def test_a_batch_is_that_of_evaluation():
  rng = np.random.default_rng(1)
  sizes = [(64, 96), (80, 60), (48, 64), (50, 50), (70, 64)]
  pictures = [rng.integers(0, 256, (*size, 3), np.uint8) for size in sizes]
  split = sets.annotations(sizes, [[(8, 8, 40, 40)]] * len(sizes))
  pixels = sets.memory_pixels(pictures)
  whole = sets.memory_set(split)
  whole = whole.__class__(whole.class_names, whole.category_ids, *[(split, pixels)] * 2)
  c = config(canvas=(48, 64))
  for batch in whole.dataset(c.data).eval_batches(4):
    rows = [int(i) - 1 for i in batch['image_ids'] if i != -1]
    mine = batch_of([place(pictures[row], c) for row in rows], 4)
    for name in mine:
      np.testing.assert_array_equal(mine[name], batch[name], err_msg=name)
      assert mine[name].dtype == batch[name].dtype


def test_an_image_that_its_canvas_cannot_hold_is_an_error():
  long_sides = config(canvas=(64, 64), short_side=(48, 48), max_long_side=100)
  with pytest.raises(ValueError, match=r'\(20, 40\) becomes \(48, 96\)'):
    place(np.zeros((20, 40, 3), np.uint8), long_sides)


@pytest.mark.parametrize(
  'array, says',
  [
    (RGB / 255, 'uint8 with values 0..255, not float64: multiply by 255'),
    (RGB.astype(np.uint16), 'uint8 .* not uint16$'),
    (RGB.transpose(2, 0, 1), r'not \[3, 10, 12\]: height and width first'),
    (RGB[None], r'not \[1, 10, 12, 3\]'),
    (RGB[:0], r'not \[0, 12, 3\]'),
    (RGB[0, 0], r'not \[3\]'),
  ],
)
def test_an_array_that_is_no_image_is_an_error(array, says):
  with pytest.raises(ValueError, match=says):
    to_rgb(array)


def test_a_pillow_image_without_pixels_is_an_error():
  with pytest.raises(ValueError, match=r'without pixels: \(width, height\) \(0, 5\)'):
    to_rgb(Image.new('RGB', (0, 5)))


def test_what_is_not_an_image_at_all_is_an_error():
  with pytest.raises(TypeError, match='array, a Pillow image or a path, not .*list'):
    to_rgb(RGB.tolist())


@pytest.mark.parametrize(
  'array', [np.full((2, 2), 0.5, np.float32), np.full((2, 2), 70_000, np.int32)]
)
def test_pixels_of_unknown_range_are_an_error(array, tmp_path):
  Image.fromarray(array).save(tmp_path / 'a.tif')
  with pytest.raises(ValueError, match='a.tif cannot be decoded: its pixels'):
    to_rgb(tmp_path / 'a.tif')


def test_a_file_that_cannot_be_decoded_is_named(tmp_path):
  whole, cut, text = (tmp_path / name for name in ('w.jpg', 'cut.jpg', 'text.jpg'))
  Image.fromarray(RGB).resize((200, 200)).save(whole)
  cut.write_bytes(whole.read_bytes()[:2000])
  text.write_text('not a picture')
  with pytest.raises(ValueError, match='cut.jpg cannot be decoded: .*truncated'):
    to_rgb(cut)
  with pytest.raises(ValueError, match='text.jpg is not an image file'):
    to_rgb(text)
  with pytest.raises(FileNotFoundError, match='none.jpg'):
    to_rgb(tmp_path / 'none.jpg')


def test_large_files_are_read_up_to_the_limit_of_pillow(tmp_path, monkeypatch):
  Image.fromarray(RGB).save(tmp_path / 'large.png')
  monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 100)  # it has 120: Pillow warns
  with warnings.catch_warnings():
    warnings.simplefilter('error')
    np.testing.assert_array_equal(to_rgb(tmp_path / 'large.png'), RGB)
  monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 50)
  with pytest.raises(ValueError, match='large.png cannot be decoded: .*limit'):
    to_rgb(tmp_path / 'large.png')
