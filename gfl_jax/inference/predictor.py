"""Predictions in three lines: `gfl_jax.load(path).predict(images)`."""

import dataclasses
import importlib
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from PIL import Image

from gfl_jax.data import prefetch
from gfl_jax.errors import UserError
from gfl_jax.export import manifest, programs
from gfl_jax.inference import loading, preprocessing
from gfl_jax.inference.preprocessing import Placed, Source
from gfl_jax.weights.trained import Program, Trained


@dataclasses.dataclass(frozen=True)
class ImageDetections:
  """The detections in one image, by falling score.

  Attributes:
    boxes: xyxy in px of the image.
    scores: in (0, 1].
    classes: 0..C-1.
    names: of these classes.
    edge_std: standard deviation of each side (left, top, right, bottom) in px of the
      image; 0 if the detector does not predict it.
  """

  boxes: Float[np.ndarray, 'n 4']
  scores: Float[np.ndarray, ' n']
  classes: Int[np.ndarray, ' n']
  names: tuple[str, ...]
  edge_std: Float[np.ndarray, 'n 4']

  def __len__(self) -> int:
    """Number of boxes."""
    return len(self.scores)

  def above(self, min_score: float) -> 'ImageDetections':
    """The detections with at least this score."""
    keep = self.scores >= min_score
    fields = (self.boxes[keep], self.scores[keep], self.classes[keep])
    names = tuple(itertools.compress(self.names, keep))
    return ImageDetections(*fields, names, self.edge_std[keep])


class Predictor:
  """A trained detector that finds objects in images; `load` makes one.

  Attributes:
    config: the experiment's config, a locked ConfigDict.
    class_names: of class 0, 1, ...
    category_ids: the data set's own id of each class.
  """

  def __init__(
    self,
    program: Program,
    config: Any,
    class_names: Sequence[str],
    category_ids: Sequence[int],
  ):
    """Args: program: finds boxes in a batch on any of the config's canvases."""
    self._program = program
    self.config = config
    self.class_names = tuple(class_names)
    self.category_ids = tuple(category_ids)

  def predict(
    self, images: Iterable[Source], *, batch_size: int = 1, min_score: float = 0.0
  ) -> list[ImageDetections]:
    """Finds objects in images.

    The first image takes longer, because it compiles the program: once for landscape
    and once for portrait canvases, and again for each other batch size.

    Args:
      images: a list or generator of arrays (uint8: [h, w], [h, w, 1], [h, w, 3] in RGB
        or [h, w, 4] in RGBA), Pillow images or paths. A generator is read as images are
        needed. An EXIF orientation is applied first, so boxes fit the upright image.
        Transparent pixels are blended with white.
      batch_size: images at a time; more than 1 is faster on GPUs and TPUs.
      min_score: leaves out detections below it. All below the config's
        `decode.score_threshold` are left out in any case.

    Returns:
      One result for each image, in the same order.

    Raises:
      TypeError: a single image, a dict or a set instead of a list; an element that is
        not an image.
      ValueError, OSError: an image that cannot be decoded, or an array of another form;
        a batch_size or min_score out of range.
    """
    if isinstance(images, np.ndarray | Image.Image | str | os.PathLike):
      raise TypeError('predict takes a list of images: write predict([image])')
    if isinstance(images, Mapping | Set):
      raise TypeError(f'predict takes a list of images, not a {type(images).__name__}')
    if not 0 <= min_score <= 1:
      raise UserError(f'min_score={min_score} must be from 0 to 1')

    def failed(index: int, error: Exception):
      raise type(error)(f'images[{index}]: {error}') from error

    found = {
      index: detections.above(min_score)
      for index, _, detections in self.stream(
        images, batch_size=batch_size, failed=failed
      )
    }
    return [found[index] for index in range(len(found))]

  def stream(
    self,
    images: Iterable[Source],
    *,
    batch_size: int,
    failed: Callable[[int, Exception], None],
  ) -> Iterator[tuple[int, np.ndarray, ImageDetections]]:
    """Finds objects in any number of images; only a few are in memory at a time.

    Args:
      images: as in `predict`; a thread reads them ahead.
      batch_size: images at a time. A batch has one canvas, so the results may come in
        another order.
      failed: called in that thread with the position of an image that cannot be read
        and the error; the other images go on.

    Yields:
      (position, upright RGB [h, w, 3] uint8, detections).
    """
    if batch_size < 1:
      raise UserError(f'batch_size={batch_size} must be at least 1')
    waiting: dict[tuple[int, ...], list[tuple[int, np.ndarray, Placed]]] = {}
    for item in prefetch(self._read(images, failed)):
      group = waiting.setdefault(item[2].canvas.shape, [])
      group.append(item)
      if len(group) == batch_size:
        yield from self._detect(group, batch_size)
        group.clear()
    for group in waiting.values():
      if group:
        yield from self._detect(group, batch_size)

  def _read(self, images, failed) -> Iterator[tuple[int, np.ndarray, Placed]]:
    for index, image in enumerate(images):
      try:
        rgb = preprocessing.to_rgb(image)
        placed = preprocessing.place(rgb, self.config)
      except (TypeError, ValueError, OSError) as error:
        failed(index, error)
        continue
      yield index, rgb, placed

  def _detect(self, group, batch_size):
    placed = [placed for _, _, placed in group]
    batch = self._program(preprocessing.batch_of(placed, batch_size))
    for row, (index, rgb, _) in enumerate(group):
      found = programs.one_image(batch, row)
      names = tuple(self.class_names[i] for i in found['classes'])
      yield index, rgb, ImageDetections(**found, names=names)


def load(
  path: str | os.PathLike, *, step: str | int | None = None, weights: str | None = None
) -> Predictor:
  """A trained detector, ready for images.

  Args:
    path: the folder of a run or of an export, a file in the folder of an export, or a
      single file of exported parameters.
    step: of a run: 'newest' (the default), 'best' (highest AP so far) or a number of
      steps.
    weights: of a run: 'ema' (the default), the running average of the parameters if
      there is one; 'raw', the parameters themselves.

  Raises:
    FileNotFoundError: there is no such path, or it is neither a run nor an export.
    ValueError: its files are damaged or do not fit together; `step` or `weights` of an
      export, which holds one step.
  """
  root = loading.root_of(path, step=step, weights=weights)
  if (root / manifest.NAME).is_file():
    source = manifest.read(root)
    # A format's packages are imported when it is loaded: onnx needs an extra.
    module = importlib.import_module(f'gfl_jax.export.{source.format}')
    loaded = module.load(root, source)
  else:
    source = loaded = loading.load_trained(root, step=step, weights=weights)
  program = programs.jitted(loaded) if isinstance(loaded, Trained) else loaded
  return Predictor(program, source.config, source.class_names, source.category_ids)
