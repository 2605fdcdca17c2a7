"""The files that scripts/predict.py writes: pictures, and JSON in COCO's form."""

import json
import os
import pathlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8

from gfl_jax import files
from gfl_jax.errors import UserError, storage_errors
from gfl_jax.evaluation import coco_metrics
from gfl_jax.evaluation.decode import Detections
from gfl_jax.inference import drawing
from gfl_jax.inference.image_files import PICTURE_SUFFIX, ImageFile
from gfl_jax.inference.predictor import ImageDetections, Predictor

_MAX_JPEG_SIDE = 65500


def check_out(out: str | os.PathLike) -> None:
  """Raises a ValueError if a file is in the way of the folder `out`."""
  out = pathlib.Path(out).absolute()
  there = next(path for path in (out, *out.parents) if path.exists())
  if not there.is_dir():
    raise UserError(f'--out={out}: {there} is a file; give a folder')


class Results:
  """Writes each picture at once, and the JSON files at the end.

  They replace earlier JSON files, and earlier pictures of the same names.
  """

  def __init__(
    self,
    out: str | os.PathLike,
    image_files: Sequence[ImageFile],
    detector: Predictor,
    *,
    min_score: float,
  ):
    """Makes the folder.

    Args:
      out: the folder.
      image_files: all images that may be added; an id is the position here, from 1.
      detector: the detector of all detections.
      min_score: the least score of a box in the pictures.
    """
    self._out = pathlib.Path(out)
    self._image_files, self._detector = image_files, detector
    self._min_score = min_score
    self._added: dict[int, tuple[dict, list[dict]]] = {}
    self._num_drawn = 0
    with storage_errors(self._out):
      self._out.mkdir(parents=True, exist_ok=True)

  def add(
    self, index: int, image: UInt8[np.ndarray, 'h w 3'], found: ImageDetections
  ) -> None:
    """Draws one image and keeps its detections.

    Args:
      index: position in the list of files.
      image: RGB, upright.
      found: the detections in the image.
    """
    source, name = self._image_files[index]
    picture_name = f'pictures/{name}{PICTURE_SUFFIX}'
    shown = found.above(self._min_score)
    picture = drawing.draw(image, shown)
    picture.thumbnail((_MAX_JPEG_SIDE, _MAX_JPEG_SIDE))
    path = self._out / picture_name
    with storage_errors(path):
      path.parent.mkdir(parents=True, exist_ok=True)
      picture.save(path, quality=92, subsampling=0)
    # After the picture is written: the JSON names no other.
    self._num_drawn += len(shown)
    height, width = image.shape[:2]
    entry = {
      'id': index + 1,
      'file_name': str(source),
      'width': width,
      'height': height,
      'picture': picture_name,
    }
    self._added[index] = entry, self._coco_results(index + 1, found)

  def finish(self) -> str:
    """Writes `detections.json` and `images.json` of all images added so far.

    Returns:
      A line for the user, with the number of other pictures in the folder.
    """
    ids = zip(self._detector.category_ids, self._detector.class_names, strict=True)
    added = [self._added[index] for index in sorted(self._added)]
    data_set = {
      'images': [image for image, _ in added],
      'annotations': [],
      'categories': [{'id': id, 'name': name} for id, name in ids],
    }
    detections = [one for _, found in added for one in found]
    with storage_errors(self._out):
      files.atomic_write(self._out / 'images.json', json.dumps(data_set, indent=1))
      files.atomic_write(self._out / 'detections.json', json.dumps(detections))
    pictures = (self._out / 'pictures').rglob(f'*{PICTURE_SUFFIX}')
    num_others = sum(path.is_file() for path in pictures) - len(added)
    others = f'; {num_others} other pictures were there before' if num_others else ''
    return (
      f'{self._out}: {len(added)} pictures with {self._num_drawn} boxes of score'
      f' {self._min_score:g} or more; detections.json has all {len(detections)}{others}'
    )

  def _coco_results(self, image_id: int, found: ImageDetections) -> list[dict]:
    fields = found.boxes, found.scores, found.classes, np.ones(len(found), bool)
    results = coco_metrics.to_coco_results(
      Detections(*(field[None] for field in (*fields, found.edge_std))),
      [image_id],
      self._detector.category_ids,
    )
    spreads = found.edge_std.astype(np.float64).round(3).tolist()
    return [one | {'edge_std': s} for one, s in zip(results, spreads, strict=True)]
