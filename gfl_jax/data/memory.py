"""A small data set, decoded, in memory or in one file; needs no TensorFlow.

Images are kept as the uint8 pixels of the resize to the largest short side. Training
without zoom or multi-scale copies them; otherwise they are resized once more. All
resizes are `place`'s: OpenCV's bilinear one, as in the published recipe, with
half-pixel centers and without antialiasing.
"""

import collections
import dataclasses
import os
import pathlib
import uuid
import zipfile
import zlib
from collections.abc import Iterator
from concurrent import futures
from typing import Any

import cv2
import numpy as np

from gfl_jax.data import transforms
from gfl_jax.data.annotations import Annotations
from gfl_jax.data.dataset import Dataset, Splits
from gfl_jax.data.transforms import Plan
from gfl_jax.errors import MissingFileError, UserError, storage_errors

FORMAT = 'gfl_jax data set'
VERSION = 2
SPLITS = ('train', 'validation')
cv2.setNumThreads(1)  # several images are decoded at once, each in a thread
# What numpy raises for a file that is cut off, changed, or of another program.
DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, KeyError, OSError, ValueError)


@dataclasses.dataclass(frozen=True)
class MemoryPixels:
  """Decoded images of one split, one after the other.

  Attributes:
    pixels: [total] uint8, image i being [h, w, 3] from starts[i].
    starts: [N] int64.
    sizes: [N, 2] int32 stored (h, w).
  """

  pixels: np.ndarray
  starts: np.ndarray
  sizes: np.ndarray

  def select(self, keep: np.ndarray) -> 'MemoryPixels':
    """Only the images at `keep`; the pixels are shared."""
    return MemoryPixels(self.pixels, self.starts[keep], self.sizes[keep])

  def images(self, plans: Iterator[Plan]) -> Iterator[np.ndarray]:
    """Yields [b, *plan.canvas, 3] uint8 for each plan."""
    for plan in plans:
      batch = np.zeros((len(plan.rows), *plan.canvas, 3), np.uint8)
      for i, row in enumerate(plan.rows):
        if row >= 0:
          shape = (*self.sizes[row].tolist(), 3)
          image = np.ndarray(shape, np.uint8, self.pixels, int(self.starts[row]))
          height, width = plan.image_sizes[i]
          place(image, plan, i, batch[i, :height, :width])
      yield batch


def place(image: np.ndarray, plan: Plan, i: int, target: np.ndarray) -> None:
  """Resizes, crops and mirrors an image as the i-th row of a plan says.

  Args:
    image: [h, w, 3] uint8 of any size.
    plan: the plan of a batch.
    i: position in that batch.
    target: [*plan.image_sizes[i], 3] uint8, the covered part of the canvas, to be
      written to.
  """
  height, width = target.shape[:2]
  size = tuple(plan.resized[i].tolist())
  y, x = plan.offsets[i]
  if size != image.shape[:2]:
    in_place = size == target.shape[:2] and not plan.mirrored[i]
    image = cv2.resize(image, size[::-1], dst=target if in_place else None)
    if in_place:
      return
  view = image[y : y + height, x : x + width]
  if plan.mirrored[i]:
    cv2.flip(view, 1, dst=target)
  else:
    target[...] = view


@dataclasses.dataclass(frozen=True)
class MemoryDataset(Splits):
  """Both splits of a data set, complete, with pixels in memory."""

  train: tuple[Annotations, MemoryPixels]
  validation: tuple[Annotations, MemoryPixels]

  def dataset(self, config: Any) -> Dataset:
    """What training uses; config: config.data.

    Raises: ValueError: the images are stored smaller than config.short_side needs;
      also all that Dataset raises.
    """
    for annotations, pixels in (self.train, self.validation):
      wanted = transforms.largest_sizes(annotations.sizes, config)
      small = np.flatnonzero((wanted > pixels.sizes).any(-1))
      if small.size:
        raise UserError(
          f'image {annotations.image_ids[small[0]]} is stored with (h, w) '
          f'{tuple(pixels.sizes[small[0]].tolist())}, short_side='
          f'{tuple(config.short_side)} and max_long_side={config.max_long_side} need '
          f'{tuple(wanted[small[0]].tolist())}: write the file again with '
          'scripts/prepare_data.py and this config'
        )
    return Dataset(config, self)

  def save(self, path: str | os.PathLike):
    """Writes one .npz file; if that fails, an older file stays as it was."""
    arrays: dict[str, Any] = {
      'format': FORMAT,
      'version': VERSION,
      'class_names': np.array(self.class_names),
      'category_ids': np.array(self.category_ids, np.int64),
      'bad_images': self.bad_images,
      'degenerate_boxes': self.degenerate_boxes,
    }
    for name in SPLITS:
      annotations, pixels = getattr(self, name)
      arrays |= {f'{name}/{k}': v for k, v in vars(annotations).items()}
      arrays |= {f'{name}/pixels/{k}': v for k, v in vars(pixels).items()}
    path = pathlib.Path(path)
    with storage_errors(path):
      path.parent.mkdir(parents=True, exist_ok=True)
      write_arrays(path, arrays)


def write_arrays(path: Any, arrays: dict[str, Any]):
  """Writes a complete .npz file or none; path: of pathlib or epath."""
  # Hosts that share the folder may have equal process ids.
  temporary = path.with_name(f'.{path.name}.{uuid.uuid4().hex}')
  try:
    with temporary.open('wb') as file:
      np.savez(file, **arrays)
    temporary.replace(path)
  finally:
    temporary.unlink(missing_ok=True)


def load(path: str | os.PathLike) -> MemoryDataset:
  """Reads a file that `MemoryDataset.save` wrote.

  Raises: FileNotFoundError; ValueError if the file is of another kind or version, or
    is damaged.
  """
  path = pathlib.Path(path)
  again = 'write it again with scripts/prepare_data.py'
  if not path.is_file():
    raise MissingFileError(
      f'no data file at {str(path)!r} (config.data.path): scripts/prepare_data.py '
      'writes one'
    )
  try:
    if not zipfile.is_zipfile(path):
      raise zipfile.BadZipFile('no .npz, or its end is missing')
    with np.load(path) as file:
      if 'format' not in file or str(file['format']) != FORMAT:
        raise zipfile.BadZipFile(f'it lacks the mark {FORMAT!r}')
      version = int(file['version'])
      if version == VERSION:
        return _read(file)
  except DAMAGED as error:
    raise UserError(
      f'{path} is damaged or not a data file ({error}): {again}'
    ) from error
  raise UserError(f'{path} has version {version}, this code reads {VERSION}: {again}')


def _read(file) -> MemoryDataset:
  def fields(kind, prefix):
    names = [field.name for field in dataclasses.fields(kind)]
    return kind(**{name: file[f'{prefix}/{name}'] for name in names})

  splits = {
    name: (fields(Annotations, name), fields(MemoryPixels, f'{name}/pixels'))
    for name in SPLITS
  }
  return MemoryDataset(
    class_names=tuple(file['class_names'].tolist()),
    category_ids=tuple(file['category_ids'].tolist()),
    bad_images=int(file['bad_images']),
    degenerate_boxes=int(file['degenerate_boxes']),
    **splits,
  )


def prefetch(iterator: Iterator[Any], size: int = 2) -> Iterator[Any]:
  """Runs an iterator in a thread, at most `size` items ahead.

  An error of the iterator is raised after the items before it; closing the generator
  ends the thread.
  """
  end = object()
  pool = futures.ThreadPoolExecutor(1, thread_name_prefix='prefetch')
  try:
    ahead = collections.deque(pool.submit(next, iterator, end) for _ in range(size))
    while (item := ahead.popleft().result()) is not end:
      ahead.append(pool.submit(next, iterator, end))
      yield item
  finally:
    pool.shutdown(cancel_futures=True)
