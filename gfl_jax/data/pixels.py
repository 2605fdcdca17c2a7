"""What an image file shows, as 8-bit RGB: one rule for training and for use.

Plain files, JPEG and PNG of 8 bits without transparency, show what they hold. What is
transparent is seen over white. Of 16 bits the upper 8 count, but of an image that uses
no more than 8 or 12 of them the upper 8 of those. Of several frames the first is taken.

EXIF's orientation says how the stored pixels are to be turned; it is a number from 1,
for not at all, to 8.
"""

import io
import warnings
from typing import Any

import cv2
import numpy as np
from jaxtyping import UInt8
from PIL import Image

from gfl_jax.errors import UserError

_EXIF_ORIENTATION = 0x0112
_WHITE = (255, 255, 255, 255)
_SWAPPED = (5, 6, 7, 8)  # orientations that swap width and height
_USED_BITS = (8, 12, 16)


def open_image(encoded: bytes) -> Image.Image:
  """A file's image, decoded whole, so that a damaged one is found.

  Raises:
    OSError, ValueError, SyntaxError, Image.DecompressionBombError: as Pillow has them,
      for what is no image, damaged, or too large to be meant.
  """
  with warnings.catch_warnings():
    # Large photographs are welcome; from twice Pillow's limit on it is an error.
    warnings.simplefilter('ignore', Image.DecompressionBombWarning)
    image = Image.open(io.BytesIO(encoded))
    image.load()
  return image


def is_plain(image: Image.Image, encoded: bytes) -> bool:
  """Whether `decode` gives of a file what `file_to_rgb` does; arguments as there."""
  if image.format in ('JPEG', 'MPO'):
    return image.mode in ('RGB', 'L')
  of_one_frame = getattr(image, 'n_frames', 1) == 1
  opaque = not image.has_transparency_data
  shallow = image.mode in ('RGB', 'L', 'P', '1') and not _is_deep(image, encoded)
  return image.format == 'PNG' and of_one_frame and opaque and shallow


def file_to_rgb(image: Image.Image, encoded: bytes) -> UInt8[np.ndarray, 'h w 3']:
  """The stored pixels of an image file, not turned.

  Args:
    image: of the file, from `open_image`.
    encoded: the file.

  Raises:
    ValueError: pixels whose range is not known.
  """
  # Of several channels of 16 bits Pillow keeps the upper 8 alone.
  if _is_deep(image, encoded) and image.mode in ('RGB', 'RGBA', 'LA'):
    values = _to_8_bits(_imdecode(encoded, cv2.IMREAD_UNCHANGED))
    order = cv2.COLOR_BGR2RGB if values.shape[2] == 3 else cv2.COLOR_BGRA2RGBA
    image = Image.fromarray(cv2.cvtColor(values, order))
  return to_rgb(image)


def to_rgb(image: Image.Image) -> UInt8[np.ndarray, 'h w 3']:
  """The pixels of a Pillow image, not turned.

  Raises:
    ValueError: pixels whose range is not known.
  """
  if image.mode == 'I' or image.mode.startswith('I;16'):
    image = Image.fromarray(_to_8_bits(np.asarray(image)))
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
  return turn(_imdecode(encoded, cv2.IMREAD_COLOR_RGB), orientation)


def orientation_of(image: Image.Image) -> int:
  """EXIF's orientation of an image; 1 where it has none, or one that does not exist."""
  try:
    orientation: Any = image.getexif().get(_EXIF_ORIENTATION, 1)
  except (OSError, ValueError, SyntaxError, KeyError, TypeError):  # damaged EXIF
    return 1
  return orientation if orientation in range(1, 9) else 1


def turned_size(size: tuple[int, int], orientation: int) -> tuple[int, int]:
  """(width, height), or (height, width), once turned."""
  return (size[1], size[0]) if orientation in _SWAPPED else size


def turn(image: np.ndarray, orientation: int) -> np.ndarray:
  """Stored pixels [h, w, 3] turned as EXIF's orientation says, in C order."""
  if orientation in _SWAPPED:
    image = image.swapaxes(0, 1)
  upside_down = orientation in (3, 4, 7, 8)
  mirrored = orientation in (2, 3, 6, 7)
  image = image[:: -1 if upside_down else 1, :: -1 if mirrored else 1]
  return np.ascontiguousarray(image)


def _imdecode(encoded: bytes, flags: int) -> np.ndarray:
  flags |= cv2.IMREAD_IGNORE_ORIENTATION
  image = cv2.imdecode(np.frombuffer(encoded, np.uint8), flags)
  if image is None:
    raise UserError('it cannot be decoded')
  return image


def _is_deep(image: Image.Image, encoded: bytes) -> bool:
  """Whether it is a PNG of 16 bits, as the first of its chunks says."""
  return image.format == 'PNG' and encoded[24] == 16


def _to_8_bits(values: np.ndarray) -> UInt8[np.ndarray, '...']:
  """Whole numbers of up to 16 bits as 8: the upper ones of those that are used."""
  if values.dtype == np.uint8:
    return values
  if values.size and not (values.min() >= 0 and values.max() < 2**16):
    raise UserError('its pixels are beyond 16 bits: save it with 8')
  highest = int(values.max(initial=0))
  used = next(bits for bits in _USED_BITS if highest < 2**bits)
  return (values >> (used - 8)).astype(np.uint8)
