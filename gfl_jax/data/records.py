"""Pixels of images in TFRecord files, read at random positions by threads.

OpenCV decodes and resizes, as in the published recipe, and lets go of Python's lock
meanwhile. An image is resized straight to its place in the batch, as uint8: nothing is
copied after that, and the device normalises. TensorFlow takes no part: the index says
where in its file an image begins, and with which checksum.

The resize is bilinear with half-pixel centres and without antialiasing. JPEGs are
decoded at their full size, with the exact transform, and then resized, as the recipe
does; decoding at half size would be faster for large photographs, but other pixels.
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

AHEAD = 2  # batches; what is in memory at once is one more
_TRIES, _PAUSE_SECONDS = 3, 2.0  # of reading, from storage that fails for a moment


@dataclasses.dataclass(frozen=True)
class RecordPixels:
  """Encoded images of one split, in TFRecord files.

  Attributes:
    paths: [F] str, the files; of any file system that epath knows.
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
    """The images at `keep` alone."""
    fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
    paths = fields.pop('paths')
    return RecordPixels(paths, **{name: x[keep] for name, x in fields.items()})

  def images(self, plans: Iterator[Plan]) -> Iterator[np.ndarray]:
    """Yields [b, *plan.canvas, 3] uint8 for each plan, decoding ahead in threads.

    Ahead are AHEAD batches, and as many more as give every core two images.

    Raises: ValueError: an image that cannot be read or decoded, or is not the one that
      was indexed, with its id. Images were checked when the data was prepared, so the
      file is damaged; errors of the storage that may pass are waited for first.
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
        del batch  # its memory is free when its user has let go of it
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
      raise UserError('its bytes are not those that were indexed')
    return encoded


class _Buffers:
  """Memory for batches, used again once nobody holds a reference to it.

  Fresh memory costs up to a tenth of the time: the system clears every page.
  """

  def __init__(self):
    self._free: dict[int, list[np.ndarray]] = {}

  def take(self, shape: tuple[int, ...]) -> np.ndarray:
    """An uint8 array of a shape; its content is anything."""
    size = math.prod(shape)
    free = self._free.setdefault(size, [])
    memory = free.pop() if free else np.empty(size, np.uint8)
    # Every view of a batch, a device's too that shares the host's memory, holds this
    # array, which is new for each batch, and not the memory under it.
    flat = np.frombuffer(memory.data, np.uint8)
    weakref.finalize(flat, free.append, memory).atexit = False
    return flat.reshape(shape)


def num_cores() -> int:
  """Cores that this process may use; on macOS, which does not tell, all there are."""
  if hasattr(os, 'sched_getaffinity'):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def _finished(batch: np.ndarray, parts: list[futures.Future]) -> np.ndarray:
  for part in parts:
    part.result()
  return batch
