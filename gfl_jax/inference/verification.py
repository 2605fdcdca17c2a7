"""Whether an exported program finds what the run's own detector finds."""

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from gfl_jax import data
from gfl_jax.errors import UserError
from gfl_jax.export import manifest
from gfl_jax.inference import image_files
from gfl_jax.inference import inputs as image_forms
from gfl_jax.inference.inputs import Placed
from gfl_jax.weights.trained import Found

NUM_IMAGES = 4  # in a batch, and of the data set
_MOST_FILES = 16  # of the given ones: a folder may hold thousands
TOLERANCE = 1e-4
_LOG = logging.getLogger(__name__)
_UNITS = (
  'scores as they are; boxes and edge_std as shares of the longer side of their image'
)


def sample_images(
  config: Any, images: Sequence[str], *, leave_out: str | os.PathLike
) -> list[Placed]:
  """Images to compare on: some of the given ones, or the first of the evaluation set.

  Args:
    config: the experiment's.
    images: files, folders or patterns, of which 16 evenly spaced ones are taken; one
      that cannot be read is named in a warning and left out. None takes the data set
      of `config.data`.
    leave_out: a folder whose images are not taken.

  Raises:
    ValueError: no image that can be read, or a data set that is not here.
    FileNotFoundError: images that do not exist.
  """
  if images:
    return _of_files(config, image_files.find(images, leave_out=leave_out))
  try:
    data_config = config.data.copy_and_resolve_references()
    data_config.cache = False  # a few images are read, not all
    dataset = data.load(data_config)
  except (ValueError, OSError, ImportError) as error:
    raise UserError(
      'an export is compared with its run on images, and the data set of the run'
      f' cannot be used here ({error}): give --images=FOLDER of some like it'
    ) from error
  placed: list[Placed] = []
  for batch in dataset.eval_batches(NUM_IMAGES):
    placed += [
      Placed(batch['images'][row], batch['image_sizes'][row], batch['scales'][row])
      for row in np.flatnonzero(batch['image_ids'] >= 0)
    ]
    if len(placed) >= NUM_IMAGES:
      break
  return placed[:NUM_IMAGES]


def _of_files(config: Any, found: Sequence[image_files.ImageFile]) -> list[Placed]:
  chosen = np.linspace(0, len(found) - 1, min(len(found), _MOST_FILES)).round()
  placed = []
  for path in (found[int(index)].path for index in chosen):
    try:
      placed.append(image_forms.place(image_forms.to_rgb(path), config))
    except (ValueError, OSError) as error:
      _LOG.warning('Not compared on %s: %s', path, error)
  if not placed:
    raise UserError('--images has no image that can be read: give photographs')
  return placed


def batches_on_each_canvas(
  config: Any, placed: Sequence[Placed]
) -> Iterator[dict[str, np.ndarray]]:
  """Every image on every canvas of the config, NUM_IMAGES in a batch.

  An image of the other orientation is transposed, so that each canvas sees them all.
  """
  for canvas in manifest.canvases(config):
    fitting = [
      image
      if image.canvas.shape[:2] == canvas
      else Placed(image.canvas.swapaxes(0, 1), image.size[::-1], image.scale[::-1])
      for image in placed
    ]
    for start in range(0, len(fitting), NUM_IMAGES):
      part = fitting[start : start + NUM_IMAGES]
      yield image_forms.batch_of(part, NUM_IMAGES)


class Comparison:
  """Adds up how two programs differ, batch by batch."""

  def __init__(self, score_threshold: float):
    """Args: score_threshold: of the programs; what lies within the tolerance of it may
    be found by one of them alone."""
    self._threshold = score_threshold
    self._images: dict[str, int] = {}
    self._detections: dict[str, int] = {}
    self._largest = {'scores': 0.0, 'boxes': 0.0, 'edge_std': 0.0}

  def add(self, batch: Mapping[str, np.ndarray], expected: Found, actual: Found):
    """Compares what is found in one batch, detection by detection.

    The order does not count, because equal scores have none. Each detection of one is
    held against the nearest of its class of the other.
    """
    height, width = batch['images'].shape[1:3]
    canvas = f'{height}x{width}'
    real = np.flatnonzero(batch['image_sizes'].all(-1))
    self._images[canvas] = self._images.get(canvas, 0) + len(real)
    self._detections[canvas] = self._detections.get(canvas, 0) + int(
      expected.valid.sum()
    )
    for row in range(len(batch['images'])):
      side = (batch['image_sizes'][row][::-1] / batch['scales'][row]).max()
      theirs, ours = _of_image(expected, row, side), _of_image(actual, row, side)
      floor = max(self._threshold, _last(expected, row), _last(actual, row))
      for these, others in ((theirs, ours), (ours, theirs)):
        sure = these['scores'] > floor + TOLERANCE
        self._add_nearest({k: v[sure] for k, v in these.items()}, others)

  def result(self) -> dict[str, Any]:
    """For the manifest: images and detections on each canvas, largest differences.

    Raises:
      ValueError: a difference above the tolerance, or a canvas without a detection.
    """
    differing = {k: v for k, v in self._largest.items() if not v <= TOLERANCE}
    if differing:
      raise UserError(
        'the exported program does not find what the run finds: largest differences'
        f' {differing}, allowed {TOLERANCE} ({_UNITS})'
      )
    empty = [canvas for canvas, count in self._detections.items() if not count]
    if empty:
      raise UserError(
        f'the detector finds nothing in the images on canvas {", ".join(empty)}, so an'
        ' export cannot be compared with it: give --images of what it was trained for,'
        ' or train it longer'
      )
    return {
      'images': self._images,
      'detections': self._detections,
      'largest_differences': self._largest,
      'tolerance': TOLERANCE,
      'units': _UNITS,
    }

  def _add_nearest(self, these, others) -> None:
    if not len(these['scores']):
      return
    differences = {
      'scores': np.abs(these['scores'][:, None] - others['scores'][None]),
      'boxes': np.abs(these['boxes'][:, None] - others['boxes'][None]).max(-1),
      'edge_std': np.abs(these['edge_std'][:, None] - others['edge_std'][None]).max(-1),
    }
    unlike = these['classes'][:, None] != others['classes'][None]
    total = np.where(unlike, np.inf, sum(differences.values()))
    if not total.size or np.isinf(total.min(-1)).any():
      self._largest['scores'] = max(self._largest['scores'], 1.0)
      return
    nearest = total.argmin(-1)[:, None]
    for name, values in differences.items():
      largest = float(np.take_along_axis(values, nearest, axis=1).max())
      # Not max(): a nan must stay.
      if not largest <= self._largest[name]:
        self._largest[name] = largest


def _of_image(found: Found, row: int, side: float) -> dict[str, np.ndarray]:
  """The detections of one image; px as shares of its longer side."""
  kept = found.valid[row]
  return {
    'scores': found.scores[row][kept],
    'classes': found.classes[row][kept],
    'boxes': found.boxes[row][kept] / max(side, 1),
    'edge_std': found.edge_std[row][kept] / max(side, 1),
  }


def _last(found: Found, row: int) -> float:
  """The score below which detections were left out for want of slots."""
  return float(found.scores[row].min()) if found.valid[row].all() else 0.0
