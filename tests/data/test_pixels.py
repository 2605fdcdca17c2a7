"""What files show: the same in training and in use, for all kinds that are accepted."""

import io
import json

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from gfl_jax import data
from gfl_jax.data import coco_json, pixels
from gfl_jax.errors import UserError
from gfl_jax.inference import images as used
from tests.data import sets

RAMP = np.add.outer(np.arange(32), np.arange(0, 256, 8)[:24]).astype(np.uint8)
COLOURS = np.stack([RAMP, RAMP[::-1], 255 - RAMP], -1)
GRAYS = np.stack([RAMP] * 3, -1)
OPACITY = np.where(np.arange(24) < 8, 0, 255) * np.ones((32, 1), int)
OVER_WHITE = np.where(OPACITY[..., None] == 0, 255, COLOURS).astype(np.uint8)
GRAY_OVER_WHITE = np.where(OPACITY[..., None] == 0, 255, GRAYS).astype(np.uint8)
RGBA = np.concatenate([COLOURS, OPACITY[..., None]], -1).astype(np.uint8)
PALETTE = Image.fromarray(COLOURS // 64 * 64).quantize(64)


def saved(image, format, **options):
  file = io.BytesIO()
  image.save(file, format, **options)
  return file.getvalue()


def deep(values):
  """A PNG of 16 bits in each channel, as OpenCV writes it."""
  channels = values.shape[-1]
  order = {3: cv2.COLOR_RGB2BGR, 4: cv2.COLOR_RGBA2BGRA}[channels]
  return cv2.imencode('.png', cv2.cvtColor(values.astype(np.uint16), order))[
    1
  ].tobytes()


def exif(orientation):
  values = Image.Exif()
  values[0x0112] = orientation
  return values


def stored_as(orientation, picture=COLOURS):
  """The image that a camera stores of an upright picture."""
  back = {6: 8, 8: 6}.get(orientation, orientation)
  return Image.fromarray(pixels.turn(picture, back))


first, rest = Image.fromarray(COLOURS), [Image.fromarray(GRAYS)]
LA = Image.fromarray(np.stack([RAMP, OPACITY.astype(np.uint8)], -1))
# Name, file, and what it shows; None where that is not exact.
KINDS = [
  ('rgb.png', saved(first, 'png'), COLOURS),
  ('gray.png', saved(Image.fromarray(RAMP), 'png'), GRAYS),
  ('palette.png', saved(PALETTE, 'png'), COLOURS // 64 * 64),
  ('bits.png', saved(Image.fromarray(RAMP > 99), 'png'), np.where(GRAYS > 99, 255, 0)),
  ('gray_alpha.png', saved(LA, 'png'), GRAY_OVER_WHITE),
  ('gray_alpha.tiff', saved(LA, 'tiff'), GRAY_OVER_WHITE),
  ('alpha.png', saved(Image.fromarray(RGBA), 'png'), OVER_WHITE),
  ('alpha.webp', saved(Image.fromarray(RGBA), 'webp', lossless=True), OVER_WHITE),
  ('alpha.tiff', saved(Image.fromarray(RGBA), 'tiff'), OVER_WHITE),
  (
    'transparent_gray.png',
    saved(Image.fromarray(RAMP), 'png', transparency=16),
    np.where(GRAYS == 16, 255, GRAYS),
  ),
  ('transparent.gif', saved(PALETTE, 'gif', transparency=3), None),
  ('transparent_palette.png', saved(PALETTE, 'png', transparency=3), None),
  ('frames.gif', saved(PALETTE, 'gif', save_all=True, append_images=rest), None),
  ('frames.png', saved(first, 'png', save_all=True, append_images=rest), COLOURS),
  ('plain.bmp', saved(first, 'bmp'), COLOURS),
  ('16.png', saved(Image.fromarray(RAMP.astype(np.uint16) * 256 + 200), 'png'), GRAYS),
  ('12.png', saved(Image.fromarray(RAMP.astype(np.uint16) * 16 + 9), 'png'), GRAYS),
  ('8_of_16.png', saved(Image.fromarray(RAMP.astype(np.uint16)), 'png'), GRAYS),
  ('12.tiff', saved(Image.fromarray(RAMP.astype('>u2') * 16), 'tiff'), GRAYS),
  ('32.tiff', saved(Image.fromarray(RAMP.astype(np.int32) * 256), 'tiff'), GRAYS),
  ('16_rgb.png', deep(COLOURS.astype(int) * 256 + 77), COLOURS),
  ('12_rgb.png', deep(COLOURS.astype(int) * 16), COLOURS),
  ('16_alpha.png', deep(RGBA.astype(int) * 257), OVER_WHITE),
  ('cmyk.jpg', saved(first.convert('CMYK'), 'jpeg', quality=100), None),
  ('gray.jpg', saved(Image.fromarray(RAMP), 'jpeg'), None),
  ('full.jpg', saved(first, 'jpeg', subsampling=0, progressive=True), None),
  ('half.jpg', saved(first, 'jpeg', subsampling=2), None),
  ('as_rgb.jpg', saved(first, 'jpeg', keep_rgb=True), None),
  *(
    (f'turned_{n}.png', saved(stored_as(n), 'png', exif=exif(n)), COLOURS)
    for n in range(1, 9)
  ),
  ('turned.jpg', saved(stored_as(6), 'jpeg', exif=exif(6)), None),
  ('odd.jpg', saved(stored_as(8, COLOURS[:31]), 'jpeg', exif=exif(8)), None),
  ('turned.webp', saved(stored_as(6), 'webp', lossless=True, exif=exif(6)), COLOURS),
]  # fmt: skip


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  """The folder of all kinds, and the pixels that training and evaluation get of it."""
  folder = tmp_path_factory.mktemp('kinds') / 'photos'

  def change(contents):
    contents['val']['annotations'] = []
    contents['val']['images'] = [
      {'id': number, 'file_name': name} for number, (name, _, _) in enumerate(KINDS)
    ]

  sets.write_folder(folder, train=2, validation=1, change=change)
  for name, content, _ in KINDS:
    (folder / 'images' / name).write_bytes(content)
  config = sets.config(
    name='coco_folder', path=str(folder), data_dir=str(folder.parent / 'prepared'),
    short_side=(24, 24), max_long_side=64,
  )  # fmt: skip
  shown = {}
  for batch in data.load(config).eval_batches(len(KINDS)):
    for row, number in enumerate(batch['image_ids'].tolist()):
      height, width = batch['image_sizes'][row]
      shown[number] = batch['images'][row, :height, :width]
  return folder, shown


@pytest.mark.parametrize('number', range(len(KINDS)), ids=[kind[0] for kind in KINDS])
def test_training_and_use_see_the_same_pixels(trained, number):
  folder, shown = trained
  name, _, expected = KINDS[number]
  in_use = used.to_rgb(folder / 'images' / name)
  if expected is not None:
    np.testing.assert_array_equal(in_use, expected)
  np.testing.assert_array_equal(shown[number], in_use)


@pytest.mark.parametrize('orientation', range(1, 9))
def test_turns_are_pillows(orientation):
  image = stored_as(orientation)
  image.getexif()[0x0112] = orientation
  np.testing.assert_array_equal(np.asarray(ImageOps.exif_transpose(image)), COLOURS)


@pytest.mark.parametrize(
  'stated, orientation, size',
  [
    ({}, 6, (24, 32)),
    ({'width': None, 'height': None}, 6, (24, 32)),
    ({'width': 24, 'height': 32}, 6, (24, 32)),
    ({'width': 32, 'height': 24}, 1, (32, 24)),  # of the stored pixels
  ],
)
def test_of_stored_and_upright_the_json_says_which(stated, orientation, size):
  encoded = saved(stored_as(6), 'jpeg', exif=exif(6))
  found = coco_json.checked_image(encoded, stated, 'a.jpg')
  assert (found.orientation, found.size) == (orientation, size)
  assert found.encoded == encoded  # nothing is encoded anew


def test_square_photographs_are_upright():
  encoded = saved(stored_as(8, COLOURS[:24]), 'jpeg', exif=exif(8))
  found = coco_json.checked_image(encoded, {'width': 24, 'height': 24}, 'a.jpg')
  assert found.orientation == 8


def test_a_size_that_is_neither_names_both():
  encoded = saved(stored_as(6), 'jpeg', exif=exif(6))
  with pytest.raises(UserError, match=r'\(32, 24\).*EXIF.*\(24, 32\).*\(20, 32\)'):
    coco_json.checked_image(encoded, {'width': 20, 'height': 32}, 'a.jpg')


@pytest.mark.parametrize('values', [np.full((2, 2), 0x12FF), np.full((2, 2), 0xFFF)])
def test_dark_images_stay_dark(values):
  shown = pixels.to_rgb(Image.fromarray(values.astype(np.uint16)))
  assert (shown == (0x12 if values[0, 0] > 0xFFF else 0xFF)).all()


@pytest.mark.parametrize(
  'values', [np.full((2, 2), 2**16), np.full((2, 2), -1), np.ones((2, 2), np.float32)]
)
def test_pixels_of_unknown_range_are_refused(values):
  kind = np.float32 if values.dtype == np.float32 else np.int32
  with pytest.raises(UserError, match='8'):
    pixels.to_rgb(Image.fromarray(values.astype(kind)))


def json_of(**image):
  content = {
    'images': [{'id': 1, 'file_name': 'a.jpg', **image}],
    'annotations': [],
    'categories': [{'id': 1, 'name': 'cat'}],
  }
  return coco_json.parse('a.json', json.dumps(content).encode(), annotated=True)


@pytest.mark.parametrize(
  'value, side', [(None, None), ('', None), (0, None), ('96', 96), (96.0, 96), (96, 96)]
)
def test_a_side_is_read_as_tools_write_it(value, side):
  assert json_of(width=value)['images'][0]['width'] == side


@pytest.mark.parametrize('value', [-1, 'wide', 96.5, True, [96], float('inf')])
def test_a_side_that_is_none_is_refused(value):
  with pytest.raises(UserError, match='width'):
    json_of(width=value)


@pytest.mark.parametrize(
  'area, kept', [(0, 600), (-3, 600), (None, 600), (float('nan'), 600), (150, 150)]
)
def test_an_area_that_is_not_known_is_that_of_the_box(area, kept):
  read = coco_json.CheckedImage(b'', (100, 50), 1)
  annotation = {'bbox': [10, 10, 30, 20], 'area': area, 'category_id': 1}
  image = {'id': 1, 'file_name': 'a.jpg'}
  example, _ = coco_json.make_example(image, [annotation], read, {1: 0})
  assert example['objects'][0]['area'] == kept
