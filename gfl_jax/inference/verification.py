"""Whether an exported program finds what the run's own detector finds."""

import itertools
import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import tqdm

from gfl_jax import data
from gfl_jax.errors import UserError
from gfl_jax.evaluation.decode import Detections
from gfl_jax.export import manifest, programs
from gfl_jax.inference import image_files, preprocessing
from gfl_jax.inference.preprocessing import Placed
from gfl_jax.weights.trained import Program, Trained

NUM_IMAGES = 4  # in a batch, and of the data set
_MAX_FILES = 16  # of the given ones: a folder may hold thousands
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
      that cannot be read is named in a warning and left out. An empty list takes the
      data set of `config.data`.
    leave_out: a folder whose images are not taken.

  Raises:
    ValueError: no image that can be read, or a data set that cannot be loaded.
    FileNotFoundError: images that do not exist.
  """
  if images:
    return _read_some(config, image_files.find(images, leave_out=leave_out))
  try:
    data_config = config.data.copy_and_resolve_references()
    data_config.cache = False  # a few images are read, not all
    dataset = data.load(data_config)
  except (ValueError, OSError, ImportError) as error:
    raise UserError(
      'an export is compared with its run on images, and the data set of the run'
      f' cannot be used here ({error}): give --images=FOLDER of some like it'
    ) from error
  placed = (
    Placed(batch['images'][row], batch['image_sizes'][row], batch['scales'][row])
    for batch in dataset.eval_batches(NUM_IMAGES)
    for row in np.flatnonzero(batch['image_ids'] >= 0)
  )
  return list(itertools.islice(placed, NUM_IMAGES))


def _read_some(config: Any, found: Sequence[image_files.ImageFile]) -> list[Placed]:
  chosen = np.linspace(0, len(found) - 1, min(len(found), _MAX_FILES)).round()
  placed = []
  for path in (found[int(index)].path for index in chosen):
    try:
      placed.append(preprocessing.place(preprocessing.to_rgb(path), config))
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
      yield preprocessing.batch_of(part, NUM_IMAGES)


def compare(
  trained: Trained, program: Program, placed: Sequence[Placed], *, precise: bool
) -> dict[str, Any]:
  """Compares an exported program with the run's detector on each canvas.

  Args:
    trained: the run's detector.
    program: the export's.
    placed: images.
    precise: whether the program multiplies in full float32 on any device. On GPUs and
      TPUs a jitted function does so only on request.

  Returns:
    What `comparison` returns, and the device.

  Raises:
    ValueError: what `comparison` raises.
  """
  reference = programs.jitted(trained)
  batches = tqdm.tqdm(
    list(batches_on_each_canvas(trained.config, placed)), desc='compare', unit='batch'
  )
  with jax.default_matmul_precision('highest' if precise else 'default'):
    found = ((batch, reference(batch), program(batch)) for batch in batches)
    result = comparison(found, trained.config.decode.score_threshold)
  return result | {'device': jax.devices()[0].device_kind}


def comparison(
  found: Iterable[tuple[Mapping[str, np.ndarray], Detections, Detections]],
  score_threshold: float,
) -> dict[str, Any]:
  """How much two programs differ.

  Equal scores have no order, so the order does not count: each detection of one program
  is compared with the nearest of its class of the other, both ways.

  Args:
    found: batches, each with the detections expected and those of the other program.
    score_threshold: of the programs. Only one of them may find a detection whose score
      is within the tolerance of it.

  Returns:
    For the manifest: images and detections on each canvas, largest differences.

  Raises:
    ValueError: a difference above the tolerance, or a canvas without a detection.
  """
  images, detections = Counter(), Counter()
  largest = {'scores': 0.0, 'boxes': 0.0, 'edge_std': 0.0}
  for batch, *both in found:
    height, width = batch['images'].shape[1:3]
    canvas = f'{height}x{width}'
    images[canvas] += int(batch['image_sizes'].all(-1).sum())
    detections[canvas] += int(both[0].valid.sum())
    for row in range(len(batch['images'])):
      side = (batch['image_sizes'][row][::-1] / batch['scales'][row]).max()
      one, other = (_in_shares(x, row, side) for x in both)
      # Where no slot is free, weaker detections were left out.
      lowest = [float(x.scores[row].min()) for x in both if x.valid[row].all()]
      floor = max([score_threshold, *lowest]) + TOLERANCE
      for pair in ((one, other), (other, one)):
        for name, value in _to_nearest(*pair, floor).items():
          # Unlike max(), it keeps a nan.
          largest[name] = float(np.maximum(largest[name], value))
  _check(largest, detections)
  return {
    'images': dict(images),
    'detections': dict(detections),
    'largest_differences': largest,
    'tolerance': TOLERANCE,
    'units': _UNITS,
  }


def _check(largest: Mapping[str, float], detections: Mapping[str, int]) -> None:
  differing = {k: v for k, v in largest.items() if not v <= TOLERANCE}
  if differing:
    raise UserError(
      'the exported program does not find what the run finds: largest differences'
      f' {differing}, allowed {TOLERANCE} ({_UNITS})'
    )
  empty = [canvas for canvas, count in detections.items() if not count]
  if empty:
    raise UserError(
      f'the detector finds nothing in the images on canvas {", ".join(empty)}, so an'
      ' export cannot be compared with it: give --images of what it was trained for,'
      ' or train it longer'
    )


def _to_nearest(these, others, floor: float) -> dict[str, float]:
  """Largest differences of those of `these` with a score above `floor`."""
  above = these['scores'][:, 0] > floor
  apart = {
    name: np.abs(these[name][above, None] - others[name]).max(-1) for name in these
  }
  other_class = apart.pop('classes') != 0
  if other_class.all(-1).any():  # one has no counterpart
    return {'scores': 1.0}
  if not above.any():
    return {}
  nearest = np.where(other_class, np.inf, sum(apart.values())).argmin(-1)[:, None]
  return {
    name: np.take_along_axis(values, nearest, axis=1).max()
    for name, values in apart.items()
  }


def _in_shares(found: Detections, row: int, side: float) -> dict[str, np.ndarray]:
  """The detections of an image, each field [n, k]; px as shares of its longer side."""
  fields = programs.one_image(found, row)
  return {
    'scores': fields['scores'][:, None],
    'classes': fields['classes'][:, None],
    'boxes': fields['boxes'] / max(side, 1),
    'edge_std': fields['edge_std'] / max(side, 1),
  }
