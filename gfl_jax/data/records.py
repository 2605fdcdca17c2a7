"""Pixels of images in TFRecord files, read at random positions by threads.

OpenCV decodes and resizes, as in the published recipe, and releases Python's lock
meanwhile. An image is resized straight into the batch, as uint8, and not copied again;
the device normalizes. TensorFlow is not used: the index says where in its file an image
begins, and gives its checksum.

JPEGs are decoded at full size, with the exact transform, before `memory.place` resizes
them. Decoding large ones at half size would be faster, but would give other pixels.
"""

import collections
import dataclasses
import math
import os
import time
import weakref
import zlib
from collections.abc import Iterator
from concurrent import futures

import numpy as np
from etils import epath

from gfl_jax.data.memory import place
from gfl_jax.data.pixels import decode
from gfl_jax.data.transforms import Plan
from gfl_jax.errors import UserError, is_of_storage

AHEAD = 2  # batches
_TRIES, _PAUSE_SECONDS = 3, 2.0  # of reading, if the storage fails for a moment


@dataclasses.dataclass(frozen=True)
class RecordPixels:
  """Encoded images of one split, in TFRecord files.

  Attributes:
    paths: [F] str, the files, on any file system that epath knows.
    files: [N] int64, which file an image is in.
    offsets: [N] int64, byte in that file where the encoded image (not its record)
      begins.
    lengths: [N] int64, bytes of the encoded image.
    checksums: [N] int64, their CRC-32.
    orientations: [N] int64, EXIF's number of the turn to be applied, 1 for none.
    image_ids: [N] int64, for messages.
  """

  paths: np.ndarray
  files: np.ndarray
  offsets: np.ndarray
  lengths: np.ndarray
  checksums: np.ndarray
  orientations: np.ndarray
  image_ids: np.ndarray

  def select(self, keep: np.ndarray) -> 'RecordPixels':
    """Only the images at `keep`."""
    fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
    paths = fields.pop('paths')
    return RecordPixels(paths, **{name: x[keep] for name, x in fields.items()})

  def images(self, plans: Iterator[Plan]) -> Iterator[np.ndarray]:
    """Yields [b, *plan.canvas, 3] uint8 for each plan, decoding ahead in threads.

    AHEAD batches are decoded ahead, plus as many as give every core two images.

    Raises: ValueError: an image cannot be read or decoded, or its checksum differs from
      the index. Images were checked when the data were prepared, so the file is
      damaged. After errors of the storage reading is tried again first.
    """
    begun: collections.deque = collections.deque()
    paths = [epath.Path(str(path)) for path in self.paths]
    buffers = _Buffers()
    pool = futures.ThreadPoolExecutor(num_cores(), thread_name_prefix='decode')
    try:
      for plan in plans:
        batch = buffers.take((len(plan.rows), *plan.canvas, 3))
        parts = [
          pool.submit(self._fill, paths, plan, i, batch[i], size)
          for i, size in enumerate(plan.image_sizes)
        ]
        begun.append((batch, parts))
        del batch  # so that only its user holds its memory
        if len(begun) > AHEAD + 2 * num_cores() // len(parts):
          yield _finished(*begun.popleft())
      while begun:
        yield _finished(*begun.popleft())
    finally:
      pool.shutdown(cancel_futures=True)

  def _fill(self, paths, plan: Plan, i: int, canvas: np.ndarray, size) -> None:
    """Puts image i of a plan at the corner of its canvas, zeros around it."""
    height, width = size
    canvas[height:] = 0
    canvas[:height, width:] = 0
    row = plan.rows[i]
    if row < 0:
      return
    try:
      image = decode(self._encoded(paths, row), int(self.orientations[row]))
    except (OSError, ValueError) as error:
      folder = os.path.dirname(self.paths[0])
      raise UserError(
        f'image {self.image_ids[row]} in {folder} cannot be read: {error}'
      ) from error
    place(image, plan, i, canvas[:height, :width])

  def _encoded(self, paths, row: int) -> bytes:
    for left in reversed(range(_TRIES)):
      try:
        with paths[self.files[row]].open('rb') as file:
          file.seek(int(self.offsets[row]))
          encoded = file.read(int(self.lengths[row]))
        break
      except OSError as error:
        if not (left and is_of_storage(error)):
          raise
        time.sleep(_PAUSE_SECONDS)
    if zlib.crc32(encoded) != self.checksums[row]:
      raise UserError('its bytes differ from those that were indexed')
    return encoded


class _Buffers:
  """Memory for batches, used again when no reference to it is left.

  With new memory reading takes up to a tenth longer: the system clears every page.
  """

  def __init__(self):
    self._free: dict[int, list[np.ndarray]] = {}

  def take(self, shape: tuple[int, ...]) -> np.ndarray:
    """A uint8 array of a shape, not initialized."""
    size = math.prod(shape)
    free = self._free.setdefault(size, [])
    memory = free.pop() if free else np.empty(size, np.uint8)
    # Each batch gets its own array over the memory. All views of the batch, also those
    # of a device that shares the host's memory, hold a reference to that array.
    flat = np.frombuffer(memory.data, np.uint8)
    weakref.finalize(flat, free.append, memory).atexit = False
    return flat.reshape(shape)


def num_cores() -> int:
  """Number of cores that this process may use; on macOS, of all cores."""
  if hasattr(os, 'sched_getaffinity'):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def _finished(batch: np.ndarray, parts: list[futures.Future]) -> np.ndarray:
  for part in parts:
    part.result()
  return batch
