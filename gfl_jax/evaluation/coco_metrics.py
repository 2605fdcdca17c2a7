"""COCO's average precision and recall, and detections in COCO's result form."""

import math
from collections import Counter

import hotcoco
import numpy as np

from gfl_jax.errors import UserError
from gfl_jax.evaluation.decode import Detections

METRICS = (
  'AP', 'AP50', 'AP75', 'APs', 'APm', 'APl',
  'AR1', 'AR10', 'AR100', 'ARs', 'ARm', 'ARl',
)  # fmt: skip


def evaluate_detections(ground_truth: dict, detections: list[dict]) -> dict:
  """Average precision and recall of detections, as pycocotools defines them.

  Args:
    ground_truth: a data set in COCO's form: `images`, `annotations` (each with `id`,
      `image_id`, `category_id`, `bbox` (x, y, w, h), `area`, `iscrowd`), `categories`.
    detections: COCO results: `image_id`, `category_id`, `bbox`, `score`.

  Returns:
    A dict of `METRICS` in [0, 1] and `per_class`: {category name: AP}. A metric is None
    if the ground truth has no box for it: none of the class, of the size, or none at
    all. Without detections the metrics are 0.

  Raises:
    ValueError: a detection of an unknown image or category, or with a non-finite score
      or box; an annotation without `area` or `iscrowd`; two categories of one name.

  Source: github.com/cocodataset/cocoapi, PythonAPI/pycocotools/cocoeval.py; computed by
  the library hotcoco, with equal results.
  """
  _check(ground_truth, detections)
  truth = hotcoco.COCO(ground_truth)
  evaluation = hotcoco.COCOeval(truth, truth.load_res(detections), 'bbox')
  evaluation.evaluate()
  evaluation.accumulate()
  evaluation.summary_lines()  # computes `stats`; `summarize` would also print
  metrics: dict = {
    name: _or_none(value) for name, value in zip(METRICS, evaluation.stats, strict=True)
  }
  assert evaluation.eval is not None
  # [IoU, recall, class, area, detections]: all areas, 100 detections.
  precision = np.asarray(evaluation.eval['precision'])[:, :, :, 0, -1]
  names = {category['id']: category['name'] for category in ground_truth['categories']}
  metrics['per_class'] = {
    names[category_id]: _or_none(precision[:, :, index].mean())
    for index, category_id in enumerate(evaluation.params.cat_ids)
  }
  return metrics


def _or_none(value) -> float | None:
  """The library's -1 ("nothing to find") as None."""
  return None if value < 0 else float(value)


def _check(ground_truth: dict, detections: list[dict]) -> None:
  for annotation in ground_truth['annotations']:
    for field in ('area', 'iscrowd'):
      if field not in annotation:
        raise UserError(f'annotation {annotation["id"]} has no {field!r}: add it')
  counts = Counter(category['name'] for category in ground_truth['categories'])
  if repeated := [name for name, count in counts.items() if count > 1]:
    raise UserError(f'categories share a name: {repeated}; give each its own')
  for field, known in ('image_id', 'images'), ('category_id', 'categories'):
    ids = {entry['id'] for entry in ground_truth[known]}
    if unknown := sorted({detection[field] for detection in detections} - ids):
      raise UserError(
        f'detections have an unknown {field}: {unknown[:10]} ({len(unknown)} in all); '
        'evaluate them with the ground truth of their own data set'
      )
  for detection in detections:
    if not all(map(math.isfinite, (*detection['bbox'], detection['score']))):
      raise UserError(f'a detection is not finite: {detection}')


def to_coco_results(detections: Detections, image_ids, category_ids) -> list[dict]:
  """Detections of a batch in COCO's result form, in original px.

  Boxes are rounded to 0.01 px, as fine as COCO's own annotations, scores to 6 digits.

  Args:
    detections: numpy arrays [B, N, ...], boxes in original px.
    image_ids: [B]; detections of images with id -1 (padding) are skipped.
    category_ids: the data set's own id of class 0, 1, ...

  Returns:
    A list of {'image_id', 'category_id', 'bbox': [x, y, w, h], 'score'}, image after
    image, each by falling score.

  Raises:
    ValueError: a class outside `category_ids`.
  """
  boxes = np.asarray(detections.boxes, np.float64)
  boxes = np.concatenate([boxes[..., :2], boxes[..., 2:] - boxes[..., :2]], -1)
  keep = np.asarray(detections.valid) & (np.asarray(image_ids) != -1)[:, None]
  classes = np.asarray(detections.classes)[keep]
  ids = np.asarray(category_ids, np.int64).tolist()
  if classes.size and classes.max() >= len(ids):
    raise UserError(
      f'class {classes.max()} was detected, but the data set has {len(ids)} classes: '
      f'set model.num_classes={len(ids)}'
    )
  image_of = np.broadcast_to(np.asarray(image_ids)[:, None], keep.shape)[keep]
  return [
    {'image_id': image, 'category_id': ids[c], 'bbox': box, 'score': s}
    for image, c, box, s in zip(
      image_of.tolist(),
      classes.tolist(),
      boxes[keep].round(2).tolist(),
      np.asarray(detections.scores, np.float64)[keep].round(6).tolist(),
      strict=True,
    )
  ]
