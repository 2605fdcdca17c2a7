"""Image files as 8-bit RGB, in the same way for training and prediction.

Plain files are JPEG and PNG of 8 bits without transparency. In other files transparent
parts are seen over white. Of 16 bits the upper 8 are kept; if an image uses only 8 or
12 bits, the upper 8 of those. Opacity is reduced separately. Of several frames the
first is taken. Colour profiles and gamma are not applied.

EXIF's orientation, a number in 1..8, says how the stored pixels are to be turned; 1
means not at all.
"""

import io
import warnings
from typing import Any, NamedTuple

import cv2
import numpy as np
from jaxtyping import UInt8
from PIL import ExifTags, Image

from gfl_jax.errors import UserError

_WHITE = (255, 255, 255, 255)
_SWAPPED = (5, 6, 7, 8)  # orientations that swap width and height
_USED_BITS = (8, 12, 16)
_RGB_TIFF = 2  # its photometric interpretation


class EncodedImage(NamedTuple):
  """A decoded image file.

  Attributes:
    image: its loaded content. Pillow turns a TIFF upright.
    encoded: the file.
    orientation: EXIF's, of the stored pixels.
  """

  image: Image.Image
  encoded: bytes
  orientation: int

  @property
  def size(self) -> tuple[int, int]:
    """(width, height) of the stored pixels."""
    upright = self.image.format == 'TIFF'
    return turned_size(self.image.size, self.orientation if upright else 1)


def open_file(encoded: bytes) -> EncodedImage:
  """Decodes a whole file, so that damage is found.

  Raises:
    Exception: Pillow's, of many kinds, for a file that is no image, damaged, or far too
      large.
  """
  with warnings.catch_warnings():
    # Pillow warns of large photographs; above twice its limit it raises.
    warnings.simplefilter('ignore', Image.DecompressionBombWarning)
    image = Image.open(io.BytesIO(encoded))
    # Loading turns a TIFF, and may be needed to know the EXIF of a PNG.
    orientation = orientation_of(image) if image.format == 'TIFF' else None
    image.load()
  return EncodedImage(image, encoded, orientation or orientation_of(image))


def is_plain(file: EncodedImage) -> bool:
  """Whether `decode` and `file_to_rgb` give the same pixels."""
  image = file.image
  if image.format in ('JPEG', 'MPO'):
    return image.mode in ('RGB', 'L')
  one_frame = getattr(image, 'n_frames', 1) == 1
  shallow = image.mode in ('RGB', 'L', 'P', '1') and not _is_deep(image, file.encoded)
  opaque = not image.has_transparency_data
  return image.format == 'PNG' and one_frame and opaque and shallow


def file_to_rgb(file: EncodedImage) -> UInt8[np.ndarray, 'h w 3']:
  """The stored pixels of an image file, not turned.

  Raises:
    ValueError: the range of the pixels is unknown.
  """
  image = file.image
  if _is_deep(image, file.encoded):
    image = _deep_to_8_bits(image, file.encoded)
  elif image.format == 'PNG' and image.mode == 'L' and 'transparency' in image.info:
    # Pillow scales gray of 2 or 4 bits to 0..255, but not the transparent value.
    image = image.copy()
    image.info['transparency'] *= 255 // (2 ** file.encoded[24] - 1)
  rgb = to_rgb(image)
  if file.image.format == 'TIFF':
    back = {6: 8, 8: 6}.get(file.orientation, file.orientation)
    rgb = turn(rgb, back)
  return rgb


def image_to_rgb(image: Image.Image) -> UInt8[np.ndarray, 'h w 3']:
  """The pixels of a Pillow image, upright.

  Raises:
    ValueError: the range of the pixels is unknown.
    Exception: Pillow's, if it cannot decode the file.
  """
  # A loaded image lacks the lower 8 of 16 bits, and a PNG's transparent value is
  # ambiguous: where possible, read the file itself.
  source = getattr(image, 'fp', None) if getattr(image, 'tile', None) else None
  if source is not None and image.format in ('PNG', 'TIFF') and image.tell() == 0:
    position = source.tell()
    source.seek(0)
    encoded = source.read()
    source.seek(position)
    if _is_deep(image, encoded) or 'transparency' in image.info:
      file = open_file(encoded)
      return turn(file_to_rgb(file), file.orientation)
  # Loading turns a TIFF and removes its orientation, so the order matters here.
  rgb = to_rgb(image)
  return turn(rgb, orientation_of(image))


def to_rgb(image: Image.Image) -> UInt8[np.ndarray, 'h w 3']:
  """The pixels of a Pillow image, not turned, except a TIFF by Pillow itself.

  Raises:
    ValueError: the range of the pixels is unknown.
  """
  if image.mode == 'I' or image.mode.startswith('I;16'):
    values, key = np.asarray(image), image.info.get('transparency')
    image = Image.fromarray(_to_8_bits(values))
    if key is not None:
      image.putalpha(Image.fromarray(np.where(values == key, 0, 255).astype(np.uint8)))
  elif image.mode == 'F':
    raise UserError('its pixels are floats of unknown range: save it with 8 bits')
  if image.has_transparency_data:
    image = image.convert('RGBA')
    image = Image.alpha_composite(Image.new('RGBA', image.size, _WHITE), image)
  return np.asarray(image.convert('RGB'))


def decode(encoded: bytes, orientation: int = 1) -> UInt8[np.ndarray, 'h w 3']:
  """The pixels of a plain file, decoded by OpenCV and turned.

  Args:
    encoded: the file.
    orientation: the turn to be applied; the file's own EXIF is not read.

  Raises:
    ValueError: OpenCV cannot decode it.
  """
  flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
  image = cv2.imdecode(np.frombuffer(encoded, np.uint8), flags)
  if image is None:
    raise UserError('it cannot be decoded')
  return turn(image, orientation)


def orientation_of(image: Image.Image) -> int:
  """EXIF's orientation of an image; 1 if it has none or an invalid one."""
  try:
    orientation: Any = image.getexif().get(ExifTags.Base.Orientation, 1)
  except Exception:  # of many kinds, for damaged EXIF
    return 1
  return orientation if orientation in range(1, 9) else 1


def turned_size(size: tuple[int, int], orientation: int) -> tuple[int, int]:
  """(width, height) after the turn."""
  return (size[1], size[0]) if orientation in _SWAPPED else size


def turn(image: np.ndarray, orientation: int) -> np.ndarray:
  """Stored pixels [h, w, 3] turned as EXIF's orientation says, in C order."""
  if orientation in _SWAPPED:
    image = cv2.transpose(image)
  # OpenCV's codes: 0 swaps top and bottom, 1 left and right, -1 both.
  code = {2: 1, 3: -1, 4: 0, 6: 1, 7: -1, 8: 0}.get(orientation)
  return image if code is None else cv2.flip(image, code)


def _is_deep(image: Any, encoded: bytes) -> bool:
  """Whether it has colors of 16 bits, of which Pillow keeps the upper 8."""
  if image.format == 'TIFF':
    is_rgb = image.tag_v2.get(ExifTags.Base.PhotometricInterpretation) == _RGB_TIFF
    return is_rgb and 16 in image.tag_v2.get(ExifTags.Base.BitsPerSample, ())
  # Byte 24 of a PNG holds its bits per channel.
  return image.format == 'PNG' and encoded[24] == 16 and not image.mode.startswith('I')


def _deep_to_8_bits(image: Any, encoded: bytes) -> Image.Image:
  """An image of `_is_deep` with the upper 8 of the bits that it uses."""
  planes = ExifTags.Base.PlanarConfiguration
  if image.format == 'TIFF' and image.tag_v2.get(planes) == 2:  # Pillow misreads it
    raise UserError('its colors of 16 bits lie in separate planes: save it with 8')
  # Pillow up to 10 also gives the fourth channel of RGBX, which is no opacity.
  upper = np.asarray(image)[..., : 4 if image.mode == 'RGBA' else 3]
  key = image.info.get('transparency')
  largest = min(upper[..., :3].max(), upper[..., -1].max())
  if key is None and largest >= 2**4:  # colors and opacity use more than 12 bits
    return image
  # OpenCV turns a TIFF upright, as Pillow does, and leaves a PNG as stored.
  values: Any = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_UNCHANGED)
  if values is not None and values.ndim == 3 and values.shape[2] >= upper.shape[2]:
    values = values[..., [2, 1, 0, 3][: upper.shape[2]]]
  if values is None or not np.array_equal(values >> 8, upper):
    raise UserError('its colors of 16 bits cannot be read: save it with 8')
  colors, opacity = values[..., :3], values[..., 3:]
  if key is not None:
    opacity = np.where((colors == key).all(-1, keepdims=True), 0, 255)
  parts = [_to_8_bits(part) for part in (colors, opacity) if part.size]
  return Image.fromarray(np.concatenate(parts, -1))


def _to_8_bits(values: np.ndarray) -> UInt8[np.ndarray, '...']:
  """Integers of up to 16 bits reduced to the upper 8 of the bits in use."""
  if values.size and not (values.min() >= 0 and values.max() < 2**16):
    raise UserError('its pixels exceed 16 bits: save it with 8')
  highest = int(values.max(initial=0))
  used = next(bits for bits in _USED_BITS if highest < 2**bits)
  return (values >> (used - 8)).astype(np.uint8)
