"""Photographs of any kind as 8-bit RGB, and their place on the detector's canvas."""

import os
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image, UnidentifiedImageError

from gfl_jax.data import memory, pixels, transforms
from gfl_jax.errors import UserError

Source = np.ndarray | Image.Image | str | os.PathLike


class Placed(NamedTuple):
  """One image on its canvas.

  Attributes:
    canvas: the image at the top left, zeros around it.
    size: (h, w) px of the canvas that it covers.
    scale: (x, y) canvas px per px of the image.
  """

  canvas: UInt8[np.ndarray, 'h w 3']
  size: Int[np.ndarray, '2']
  scale: Float[np.ndarray, '2']


def to_rgb(source: Source) -> UInt8[np.ndarray, 'h w 3']:
  """An image as 8-bit RGB, upright.

  Files and Pillow images are turned by their EXIF orientation. `data.pixels`, which
  training uses too, converts other modes.

  Args:
    source: the path of a file, a Pillow image, or a uint8 array: [h, w] or [h, w, 1]
      gray, [h, w, 3] RGB, [h, w, 4] RGB and opacity.

  Raises:
    TypeError: another type.
    ValueError: an array of another dtype or shape; no pixels; a file that cannot be
      decoded; pixels of unknown range.
    FileNotFoundError: no such file.
  """
  if isinstance(source, np.ndarray):
    return _array_to_rgb(source)
  if isinstance(source, Image.Image):
    return _image_to_rgb(source)
  if isinstance(source, str | os.PathLike):
    return _read(pathlib.Path(source))
  raise TypeError(
    f'an image must be a numpy array, a Pillow image or a path, not {type(source)}'
  )


def place(image: UInt8[np.ndarray, 'h w 3'], config: Any) -> Placed:
  """Places an image on its canvas as evaluation does; see `transforms`.

  Args:
    image: of any size.
    config: the experiment's config; reads `data`.

  Raises:
    ValueError: the resized image is larger than the canvas.
  """
  size = np.array([image.shape[:2]])
  turned = transforms.is_turned(size, config.data.canvas)[0]
  canvas = tuple(config.data.canvas)[:: -1 if turned else 1]
  plan = transforms.plan_evaluation(np.zeros(1, int), size, canvas, config.data)
  height, width = plan.resized[0]
  if height > canvas[0] or width > canvas[1]:
    raise UserError(
      f'an image of (h, w) {image.shape[:2]} becomes {(int(height), int(width))} by the'
      f' short_side and max_long_side of the config, larger than its canvas {canvas}:'
      ' cut the image into parts with another ratio of sides'
    )
  placed = np.zeros((*canvas, 3), np.uint8)
  memory.place(image, plan, 0, placed[:height, :width])
  scale = (plan.resized / size)[0, ::-1].astype(np.float32)
  return Placed(placed, plan.resized[0].astype(np.int32), scale)


def batch_of(placed: Sequence[Placed], batch_size: int) -> dict[str, np.ndarray]:
  """A batch as `evaluator.make_detect` takes it.

  Args:
    placed: 1 to batch_size images on canvases of one shape.
    batch_size: images of size (0, 0) fill the batch up to it.
  """
  blank = Placed(
    np.zeros_like(placed[0].canvas), np.zeros(2, np.int32), np.ones(2, np.float32)
  )
  rows = [*placed, *[blank] * (batch_size - len(placed))]
  images, sizes, scales = (np.stack(field) for field in zip(*rows, strict=True))
  return {'images': images, 'image_sizes': sizes, 'scales': scales}


def _array_to_rgb(array: np.ndarray) -> np.ndarray:
  if array.dtype != np.uint8:
    raise UserError(
      f'an image array must be uint8 with values 0..255, not {array.dtype}'
      + (': multiply by 255 if it is in 0..1' if array.dtype.kind == 'f' else '')
    )
  channels = array.shape[2] if array.ndim == 3 else 1
  if array.ndim not in (2, 3) or channels not in (1, 3, 4) or not array.size:
    raise UserError(
      f'an image array must be [h, w], [h, w, 1], [h, w, 3] or [h, w, 4], not'
      f' {list(array.shape)}: height and width first, one image at a time'
    )
  if channels == 3:
    return array
  if channels == 4:
    return _image_to_rgb(Image.fromarray(array))
  return np.repeat(array.reshape(*array.shape[:2], 1), 3, axis=2)


def _image_to_rgb(image: Image.Image) -> np.ndarray:
  if not all(image.size):
    raise UserError(f'a Pillow image without pixels: (width, height) {image.size}')
  return pixels.image_to_rgb(image)


def _read(path: pathlib.Path) -> np.ndarray:
  try:
    file = pixels.open_file(path.read_bytes())
    return pixels.turn(pixels.file_to_rgb(file), file.orientation)
  except (FileNotFoundError, IsADirectoryError, PermissionError, MemoryError):
    raise
  except UnidentifiedImageError as error:
    raise UserError(f'{path} is not an image file that can be read') from error
  except Exception as error:  # Pillow's decoders raise many types
    raise UserError(f'{path} cannot be decoded: {error}') from error
