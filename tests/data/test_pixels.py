"""What files show: the same in training and in use, for all kinds that are accepted."""

import io
import json
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image, ImageFile, ImageOps

from gfl_jax import data
from gfl_jax.data import coco_json, pixels
from gfl_jax.errors import UserError
from gfl_jax.inference import preprocessing
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


def deep(values, suffix='.png'):
  """A file of 16 bits in each channel, as OpenCV writes it."""
  channels = values.shape[-1]
  order = {3: cv2.COLOR_RGB2BGR, 4: cv2.COLOR_RGBA2BGRA}[channels]
  bgr = cv2.cvtColor(values.astype(np.uint16), order)
  return cv2.imencode(suffix, bgr)[1].tobytes()


def png(values, bits, kind, *, key=()):
  """A PNG of [h, w, c] values of some bits, with a value that is transparent.

  kind: 0 for gray, 2 for RGB, 4 for gray and opacity.
  """
  chunk = lambda name, content: (
    struct.pack('>I', len(content))
    + (name + content)
    + struct.pack('>I', zlib.crc32(name + content))
  )
  height, width = values.shape[:2]
  each = (values.reshape(height, -1, 1) >> np.arange(bits)[::-1]) & 1
  rows = np.packbits(each.reshape(height, -1).astype(np.uint8), axis=1)
  header = struct.pack('>IIBBBBB', width, height, bits, kind, 0, 0, 0)
  return b''.join(
    (
      b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header),
      chunk(b'tRNS', struct.pack(f'>{len(key)}H', *key)) if key else b'',
      chunk(b'IDAT', zlib.compress(b''.join(b'\0' + row.tobytes() for row in rows))),
      chunk(b'IEND', b''),
    )
  )


def exif(orientation):
  values = Image.Exif()
  values[0x0112] = orientation
  return values


def stored_as(orientation, picture=COLOURS):
  """The image that a camera stores of an upright picture."""
  back = {6: 8, 8: 6}.get(orientation, orientation)
  return Image.fromarray(pixels.turn(picture, back))


GRAY = RAMP[..., None].astype(int)
first, rest = Image.fromarray(COLOURS), [Image.fromarray(GRAYS)]
LA = Image.fromarray(np.stack([RAMP, OPACITY.astype(np.uint8)], -1))
SIXTEEN_OVER_WHITE = np.where(GRAYS == 16, 255, GRAYS)
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
  # Colours of 12 bits, opacity of 16.
  ('12_alpha.png', deep(RGBA * [16, 16, 16, 257]), OVER_WHITE),
  (
    '12_gray_alpha.png',
    png(np.concatenate([GRAY * 16, OPACITY[..., None].astype(int) * 257], -1), 16, 4),
    GRAY_OVER_WHITE,
  ),
  ('12_rgb.tiff', deep(COLOURS.astype(int) * 16, '.tiff'), COLOURS),
  ('16_transparent.png', png(GRAY * 256, 16, 0, key=[4096]), SIXTEEN_OVER_WHITE),
  (
    '12_rgb_transparent.png',
    png(GRAYS.astype(int) * 16, 16, 2, key=[256] * 3),
    SIXTEEN_OVER_WHITE,
  ),
  (
    '4_bits_transparent.png',
    png(GRAY // 16, 4, 0, key=[1]),
    np.where(GRAYS // 16 == 1, 255, GRAYS // 16 * 17),
  ),
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
  ('turned.tiff', saved(stored_as(6), 'tiff', exif=exif(6)), COLOURS),
  ('phone.mpo', saved(first, 'mpo', save_all=True, append_images=rest), None),
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
  path = folder / 'images' / name
  in_use = preprocessing.to_rgb(path)
  if expected is not None:
    np.testing.assert_array_equal(in_use, expected)
  np.testing.assert_array_equal(shown[number], in_use)
  with Image.open(path) as image:
    np.testing.assert_array_equal(preprocessing.to_rgb(image), in_use)


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


@pytest.mark.parametrize('stated, size', [((24, 32), (24, 32)), ((32, 24), (32, 24))])
def test_a_tiff_is_turned_as_the_json_says_too(stated, size):
  file = saved(stored_as(6), 'tiff', exif=exif(6))
  entry = dict(zip(('width', 'height'), stated, strict=True))
  found = coco_json.checked_image(file, entry, 'a.tiff')
  picture = pixels.decode(found.encoded, found.orientation)
  expected = COLOURS if size == (24, 32) else np.asarray(stored_as(6))
  assert found.size == size
  np.testing.assert_array_equal(picture, expected)


@pytest.mark.parametrize('size', [(1, 1), (33, 47), (64, 16)])
@pytest.mark.parametrize('sampling', ['4:4:4', '4:2:2', '4:2:0', '4:1:1', 'gray'])
@pytest.mark.parametrize('progressive', [False, True])
def test_jpegs_are_decoded_alike(size, sampling, progressive):
  noise = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
  image, options = Image.fromarray(noise), {'subsampling': sampling}
  if sampling == 'gray':
    image, options = image.convert('L'), {}
  encoded = saved(image, 'jpeg', progressive=progressive, **options)
  file = pixels.open_file(encoded)
  assert pixels.is_plain(file)
  np.testing.assert_array_equal(pixels.decode(encoded), pixels.file_to_rgb(file))


@pytest.mark.parametrize(
  'name, content',
  [(b'gAMA', struct.pack('>I', 22222)), (b'sRGB', b'\0'), (b'sBIT', b'\5\6\5')],
)
def test_gamma_and_the_like_change_nothing(name, content):
  encoded = saved(first, 'png')
  chunk = struct.pack('>I', len(content)) + name + content
  chunk += struct.pack('>I', zlib.crc32(name + content))
  file = pixels.open_file(encoded[:33] + chunk + encoded[33:])
  assert pixels.is_plain(file)
  np.testing.assert_array_equal(pixels.decode(file.encoded), COLOURS)
  np.testing.assert_array_equal(pixels.file_to_rgb(file), COLOURS)


def test_what_pillow_misreads_is_refused():
  planes = saved(Image.fromarray(GRAYS), 'tiff')  # 8 bits, said to be 16 in planes
  file = pixels.open_file(planes)
  file.image.tag_v2[258], file.image.tag_v2[284] = (16, 16, 16), 2
  with pytest.raises(UserError, match='16 bits'):
    pixels.file_to_rgb(file)


@pytest.mark.parametrize('kind', [RuntimeError, TypeError, NotImplementedError])
def test_whatever_pillow_raises_is_of_the_image(kind, monkeypatch):
  def load(self):
    raise kind('Failed to decode frame 0')

  monkeypatch.setattr(ImageFile.ImageFile, 'load', load)
  with pytest.raises(UserError, match=r'a.png cannot be read: Failed'):
    coco_json.checked_image(saved(first, 'png'), {}, 'a.png')


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
  'area, kept',
  [(0, 600), (-3, 600), (None, 600), (float('nan'), 600), (150, 150)]
  + [(640, 640), (700, 600)],
)
def test_an_area_that_is_not_known_is_that_of_the_box(area, kept):
  read = coco_json.CheckedImage(b'', (100, 50), 1)
  annotation = {'bbox': [10, 10, 30, 20], 'area': area, 'category_id': 1}
  image = {'id': 1, 'file_name': 'a.jpg'}
  example, _ = coco_json.make_example(image, [annotation], read, {1: 0})
  assert example['objects'][0]['area'] == kept
