"""What an image file shows, as 8-bit RGB: one rule for training and for use.

Plain files, JPEG and PNG of 8 bits without transparency, show what they hold. What is
transparent is seen over white. Of 16 bits the upper 8 count, but of an image that uses
no more than 8 or 12 of them the upper 8 of those; opacity is looked at by itself. Of
several frames the first is taken. Colour profiles and gamma are not applied.

EXIF's orientation says how the stored pixels are to be turned; it is a number from 1,
for not at all, to 8.
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


class ImageFile(NamedTuple):
  """An image file that could be decoded.

  Attributes:
    image: its content, loaded. Pillow has made it upright if it is a TIFF.
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


def open_file(encoded: bytes) -> ImageFile:
  """Decodes a file whole, so that a damaged one is found.

  Raises:
    Exception: as Pillow has them, of many kinds, for what is no image, damaged, or too
      large to be meant.
  """
  with warnings.catch_warnings():
    # Large photographs are welcome; from twice Pillow's limit on it is an error.
    warnings.simplefilter('ignore', Image.DecompressionBombWarning)
    image = Image.open(io.BytesIO(encoded))
    # Loading turns a TIFF; the EXIF of a PNG may only be known once it is loaded.
    orientation = orientation_of(image) if image.format == 'TIFF' else None
    image.load()
  return ImageFile(image, encoded, orientation or orientation_of(image))


def is_plain(file: ImageFile) -> bool:
  """Whether `decode` gives of the file's bytes what `file_to_rgb` does."""
  image = file.image
  if image.format in ('JPEG', 'MPO'):
    return image.mode in ('RGB', 'L')
  of_one_frame = getattr(image, 'n_frames', 1) == 1
  opaque = not image.has_transparency_data
  shallow = image.mode in ('RGB', 'L', 'P', '1') and not _is_deep(image, file.encoded)
  return image.format == 'PNG' and of_one_frame and opaque and shallow


def file_to_rgb(file: ImageFile) -> UInt8[np.ndarray, 'h w 3']:
  """The stored pixels of an image file, not turned.

  Raises:
    ValueError: pixels whose range is not known.
  """
  image = file.image
  if _is_deep(image, file.encoded):
    image = _deep_to_8_bits(image, file.encoded)
  elif image.format == 'PNG' and image.mode == 'L' and 'transparency' in image.info:
    # Pillow spreads grey of 2 or 4 bits over 0..255, but not the transparent value.
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
    ValueError: pixels whose range is not known.
    Exception: what Pillow raises for a file that it cannot decode.
  """
  # Once loaded, it lacks the lower 8 bits of colours of 16, and what a PNG's
  # transparent value is meant for.
  source = getattr(image, 'fp', None) if getattr(image, 'tile', None) else None
  if source is not None and image.format in ('PNG', 'TIFF') and image.tell() == 0:
    position = source.tell()
    source.seek(0)
    encoded = source.read()
    source.seek(position)
    if _is_deep(image, encoded) or 'transparency' in image.info:
      file = open_file(encoded)
      return turn(file_to_rgb(file), file.orientation)
  # A TIFF is turned, and its orientation gone, once it is loaded.
  rgb = to_rgb(image)
  return turn(rgb, orientation_of(image))


def to_rgb(image: Image.Image) -> UInt8[np.ndarray, 'h w 3']:
  """The pixels of a Pillow image, not turned but by Pillow itself.

  Raises:
    ValueError: pixels whose range is not known.
  """
  if image.mode == 'I' or image.mode.startswith('I;16'):
    values, key = np.asarray(image), image.info.get('transparency')
    image = Image.fromarray(_to_8_bits(values))
    if key is not None:
      image.putalpha(Image.fromarray(np.where(values == key, 0, 255).astype(np.uint8)))
  elif image.mode == 'F':
    raise UserError('its pixels are floats, of unknown range: save it with 8 bits')
  if image.has_transparency_data:
    image = image.convert('RGBA')
    image = Image.alpha_composite(Image.new('RGBA', image.size, _WHITE), image)
  return np.asarray(image.convert('RGB'))


def decode(encoded: bytes, orientation: int = 1) -> UInt8[np.ndarray, 'h w 3']:
  """The pixels of a plain file, by OpenCV, turned.

  Args:
    encoded: the file.
    orientation: to be applied, whatever the file's own says.

  Raises:
    ValueError: OpenCV cannot decode it.
  """
  flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
  image = cv2.imdecode(np.frombuffer(encoded, np.uint8), flags)
  if image is None:
    raise UserError('it cannot be decoded')
  return turn(image, orientation)


def orientation_of(image: Image.Image) -> int:
  """EXIF's orientation of an image; 1 where it has none, or one that does not exist."""
  try:
    orientation: Any = image.getexif().get(ExifTags.Base.Orientation, 1)
  except Exception:  # of many kinds, for damaged EXIF
    return 1
  return orientation if orientation in range(1, 9) else 1


def turned_size(size: tuple[int, int], orientation: int) -> tuple[int, int]:
  """(width, height), or (height, width), once turned."""
  return (size[1], size[0]) if orientation in _SWAPPED else size


def turn(image: np.ndarray, orientation: int) -> np.ndarray:
  """Stored pixels [h, w, 3] turned as EXIF's orientation says, in C order."""
  if orientation in _SWAPPED:
    image = cv2.transpose(image)
  # OpenCV's codes: 0 swaps top and bottom, 1 left and right, -1 both.
  code = {2: 1, 3: -1, 4: 0, 6: 1, 7: -1, 8: 0}.get(orientation)
  return image if code is None else cv2.flip(image, code)


def _is_deep(image: Image.Image, encoded: bytes) -> bool:
  """Whether it is a file with colours of 16 bits, of which Pillow keeps the upper 8."""
  if image.format == 'TIFF':
    tags = _tags(image)
    is_rgb = tags.get(ExifTags.Base.PhotometricInterpretation) == _RGB_TIFF
    return is_rgb and 16 in tags.get(ExifTags.Base.BitsPerSample, ())
  # The first chunk of a PNG has its bits.
  return image.format == 'PNG' and encoded[24] == 16 and not image.mode.startswith('I')


def _tags(image: Any) -> Any:
  """Those of a TIFF."""
  return image.tag_v2


def _deep_to_8_bits(image: Image.Image, encoded: bytes) -> Image.Image:
  """A loaded image of `_is_deep` with the upper 8 of the bits that it uses."""
  if (
    image.format == 'TIFF' and _tags(image).get(ExifTags.Base.PlanarConfiguration) == 2
  ):
    raise UserError('its colours of 16 bits lie in planes: save it with 8')  # misread
  # Pillow up to 10 gives the fourth channel of RGBX, too, which is no opacity.
  upper = np.asarray(image)[..., : 4 if image.mode == 'RGBA' else 3]
  key = image.info.get('transparency')
  largest = min(upper[..., :3].max(), upper[..., -1].max())
  if key is None and largest >= 2**4:  # colours and opacity use more than 12 bits
    return image
  # OpenCV makes a TIFF upright, as Pillow does, and leaves a PNG as it is stored.
  values: Any = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_UNCHANGED)
  if values is not None and values.ndim == 3 and values.shape[2] >= upper.shape[2]:
    values = values[..., [2, 1, 0, 3][: upper.shape[2]]]
  if values is None or not np.array_equal(values >> 8, upper):
    raise UserError('its colours of 16 bits cannot be read: save it with 8')
  colours, opacity = values[..., :3], values[..., 3:]
  if key is not None:
    opacity = np.where((colours == key).all(-1, keepdims=True), 0, 255)
  parts = [_to_8_bits(part) for part in (colours, opacity) if part.size]
  return Image.fromarray(np.concatenate(parts, -1))


def _to_8_bits(values: np.ndarray) -> UInt8[np.ndarray, '...']:
  """Whole numbers of up to 16 bits as 8: the upper ones of those that are used."""
  if values.size and not (values.min() >= 0 and values.max() < 2**16):
    raise UserError('its pixels are beyond 16 bits: save it with 8')
  highest = int(values.max(initial=0))
  used = next(bits for bits in _USED_BITS if highest < 2**bits)
  return (values >> (used - 8)).astype(np.uint8)
