"""Predictions in three lines: `gfl_jax.load(path).predict(images)`."""

import dataclasses
import importlib
import itertools
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from PIL import Image

from gfl_jax.data import prefetch
from gfl_jax.errors import MissingFileError, UserError
from gfl_jax.export import manifest, programs
from gfl_jax.inference import preprocessing
from gfl_jax.inference.preprocessing import Placed, Source
from gfl_jax.weights.trained import Program, Trained


@dataclasses.dataclass(frozen=True)
class ImageDetections:
  """What was found in one image, best first.

  Attributes:
    boxes: xyxy in px of the image.
    scores: in (0, 1].
    classes: 0..C-1.
    names: what these classes are called.
    edge_std: standard deviation of each side (left, top, right, bottom), in px of the
      image; 0 where the detector does not tell it.
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
    """Those of this score or a higher one."""
    keep = self.scores >= min_score
    return ImageDetections(
      boxes=self.boxes[keep],
      scores=self.scores[keep],
      classes=self.classes[keep],
      names=tuple(itertools.compress(self.names, keep)),
      edge_std=self.edge_std[keep],
    )


class Predictor:
  """A trained detector, ready for images; `load` makes one.

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
    """What is in some images.

    The first image takes longer: there the program is compiled, once for landscape and
    once for portrait canvases, and again for another batch size.

    Args:
      images: arrays (uint8: [h, w], [h, w, 1], [h, w, 3] in RGB or [h, w, 4] in RGBA),
        Pillow images or paths, in a list, or read as they are needed from a generator.
        Boxes of an image with an EXIF orientation are those of
        the upright picture; what is transparent is seen over white.
      batch_size: images at a time; more than 1 pays on GPUs and TPUs.
      min_score: detections below it are left out, as are all below the config's
        `decode.score_threshold`.

    Returns:
      One result for each image, in their order.

    Raises:
      TypeError: one image instead of a list, a dict or a set, or something that is no
        image.
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
    """What is in any number of images, as it is found; few are in memory at a time.

    Args:
      images: as in `predict`; they are read ahead in a thread.
      batch_size: images at a time. Those of one canvas make a batch, so results may
        come in another order.
      failed: called in that thread with the position of an image that cannot be read
        and the error; the others go on.

    Yields:
      (position, upright RGB [h, w, 3] uint8, what was found).
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
    found = self._program(preprocessing.batch_of(placed, batch_size))
    for row, (index, rgb, _) in enumerate(group):
      take = lambda field, row=row: np.asarray(field)[row][np.asarray(found.valid)[row]]
      classes = take(found.classes)
      yield (
        index,
        rgb,
        ImageDetections(
          boxes=take(found.boxes),
          scores=take(found.scores),
          classes=classes,
          names=tuple(self.class_names[i] for i in classes),
          edge_std=take(found.edge_std),
        ),
      )


def load(
  path: str | os.PathLike, *, step: str | int | None = None, weights: str | None = None
) -> Predictor:
  """A trained detector, ready for images.

  Args:
    path: the folder of a run or of an export, a file in the folder of an export, or a
      file of exported parameters alone.
    step: of a run: 'newest' (if not given), 'best' (highest AP so far) or a number of
      steps.
    weights: of a run: 'ema' (if not given), the running average of the parameters where
      there is one; 'raw', the parameters themselves.

  Raises:
    FileNotFoundError: nothing there, or neither a run nor an export.
    ValueError: what is there does not fit together, or is damaged; `step` or `weights`
      of an export, which holds one step.
  """
  root = root_of(path, step=step, weights=weights)
  if (root / manifest.NAME).is_file():
    source = manifest.read(root)
    # A format's packages are imported when it is loaded: onnx needs an extra.
    module = importlib.import_module(f'gfl_jax.export.{source.format}')
    loaded = module.load(root, source)
  else:
    # Not imported for an export, which needs neither training nor orbax.
    from gfl_jax.inference import loading

    source = loaded = loading.load_trained(root, step=step, weights=weights)
  program = programs.jitted(loaded) if isinstance(loaded, Trained) else loaded
  return Predictor(program, source.config, source.class_names, source.category_ids)


def root_of(
  path: str | os.PathLike, *, step: str | int | None = None, weights: str | None = None
) -> pathlib.Path:
  """What `load` reads: the folder of a run or of an export, or a lone file.

  Raises:
    FileNotFoundError: it is no run, no export and no file of one.
    ValueError: `step` or `weights` of an export.
  """
  root = path = pathlib.Path(path)
  if not path.exists():
    raise MissingFileError(f'{path} does not exist')
  if path.is_file() and (path.parent / manifest.NAME).is_file():
    root = path.parent
  elif path.is_file() and path.suffix != '.safetensors':
    raise MissingFileError(f'{path} is no file of an export: no {manifest.NAME} beside')
  is_run = (root / 'config.json').is_file()
  is_export = root.is_file() or (root / manifest.NAME).is_file()
  if not is_run and not is_export:
    raise MissingFileError(
      f'{path} is neither the folder of a run (no config.json) nor of an export (no'
      f' {manifest.NAME})'
    )
  if is_export and (step, weights) != (None, None):
    raise UserError(
      f'{root} is an export of one step, so {step=} and {weights=} cannot be chosen:'
      ' leave them out, or give the folder of a run'
    )
  return root
