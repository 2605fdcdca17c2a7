"""What the diagnostics are computed from: predictions beside the truth, as tables.

`DiagnosticRows` keeps a few rows per image, however many anchors there are, so that
memory is bounded; `diagnostics.summarize` computes the measures. The definitions of a
true positive, a true negative and a matched detection are in diagnostics.py.

NumPy on the host.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from gfl_jax.evaluation import side_distributions
from gfl_jax.evaluation.decode import Candidates, Detections
from gfl_jax.models import canvas_points
from gfl_jax.ops.arrays import ArrayLike

NUM_CANDIDATES = 200
POSITIVE_IOU, NEGATIVE_IOU = 0.5, 0.1
MIN_SCORE = 0.05  # of a detection whose sides are measured
_SAMPLES_PER_IMAGE = 10
Rows = dict[str, np.ndarray]
# The shape of a row of each column, and what it holds.
_COLUMNS = {
  'pairs': (3,),  # outranking ones by final score and by class score, and all
  'positives': (4,),  # class score, final score, IoU, centerness
  'negatives': (2,),  # number in an image, and number of those above a positive
  'sample': (5,),  # class score, quality, final score, IoU, is positive
  'detections': (2,),  # score, IoU
  'side_error': (4,),  # annotated - predicted distance, strides
  'side_std': (4,),  # strides
  'side_cdf': (4,),
  'side_density': (4,),  # per stride
  'side_crps': (4,),  # strides
  'side_px': (4,),  # original px per stride
  'side_sigma': (4,),  # of the annotation, original px
  'side_kind': (4,),
  'side_extent': (4,),  # of the true box across the side, original px
}


class Sides(NamedTuple):
  """The sides of the detections as predicted, before voting and clipping.

  Attributes:
    distance: [*, 4] from the anchor's point, in strides.
    outputs: [*, 4, n] of the head, from which the distance was decoded.
  """

  distance: ArrayLike
  outputs: ArrayLike


class _Truth(NamedTuple):
  """The true boxes of an image in original px; crowds are separate."""

  boxes: np.ndarray  # [m, 4] xyxy
  classes: np.ndarray  # [m]
  edge_sigma: np.ndarray  # [m, 4] px, nan where unknown
  edge_kind: np.ndarray  # [m, 4] index into the kinds, -1 where unknown
  crowds: np.ndarray  # [k, 4] xyxy


class DiagnosticRows:
  """Collects what the measures need, batch by batch.

  Args:
    ground_truth: in COCO's form; an annotation has `edge_sigma` and `edge_kind` (left,
      top, right, bottom) if they are known.
    config: the experiment.
  """

  def __init__(self, ground_truth: Mapping, config: Any):
    self._config = config
    annotations = ground_truth['annotations']
    self.edge_kinds = sorted({k for a in annotations for k in a.get('edge_kind', ())})
    self._truths = _read_truths(ground_truth, self.edge_kinds)
    self._rows: list[Rows] = []

  def add(
    self,
    batch: Mapping[str, np.ndarray],
    detections: Detections,
    candidates: Candidates,
    sides: Sides,
  ) -> None:
    """Adds a batch, all in NumPy arrays; boxes are in original px.

    Args:
      batch: of the evaluation set.
      detections: [B, N, ...].
      candidates: [B, `NUM_CANDIDATES` or all, ...].
      sides: [B, N, ...], of the detections.
    """
    points = canvas_points(self._config, batch['images'].shape[1:3])
    for i, image_id in enumerate(batch['image_ids'].tolist()):
      if image_id == -1:
        continue
      truth, scale = self._truths[image_id], batch['scales'][i]
      found, proposed, predicted = jax.tree.map(
        lambda values, i=i: values[i], (detections, candidates, sides)
      )
      iou, _ = overlaps(found.boxes, truth.boxes)
      centers = points.centers[proposed.anchor_index] / scale
      matches = match(found, iou, truth.classes)
      best_iou = _at_class(iou, found.classes, truth).max(-1)
      measured = found.valid & _counts(found.boxes, truth)
      rows = {
        **_candidate_rows(proposed, centers, truth, image_id),
        'detections': np.stack([found.scores, best_iou], -1)[measured],
        **_side_rows(found, predicted, truth, matches, points, scale, self._config.box),
      }
      self._rows.append({k: v.astype(np.float32) for k, v in rows.items()})

  def rows(self) -> Rows:
    """The rows of all batches; `join` adds those of other processes."""
    return join([no_rows(), *self._rows])


def join(parts: Sequence[Rows]) -> Rows:
  """One table of several, in their order."""
  return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def no_rows() -> Rows:
  """An empty table with all columns, for a process without images."""
  return {name: np.zeros((0, *shape), np.float32) for name, shape in _COLUMNS.items()}


def _read_truths(ground_truth: Mapping, kinds: Sequence[str]) -> dict[int, _Truth]:
  label = {c['id']: i for i, c in enumerate(ground_truth['categories'])}
  index = {kind: i for i, kind in enumerate(kinds)}
  per_image: dict[int, list] = {image['id']: [] for image in ground_truth['images']}
  for annotation in ground_truth['annotations']:
    per_image[annotation['image_id']].append(annotation)
  unknown = [np.nan] * 4
  truths = {}
  for image_id, annotations in per_image.items():
    single = [a for a in annotations if not a['iscrowd']]
    sigmas = [a.get('edge_sigma', unknown) for a in single]
    named = [[index.get(k, -1) for k in a.get('edge_kind', unknown)] for a in single]
    truths[image_id] = _Truth(
      boxes=_xyxy(single),
      classes=np.array([label[a['category_id']] for a in single], int),
      edge_sigma=np.reshape(sigmas, (-1, 4)),
      edge_kind=np.reshape(named, (-1, 4)),
      crowds=_xyxy([a for a in annotations if a['iscrowd']]),
    )
  return truths


def _xyxy(annotations: list) -> np.ndarray:
  boxes = np.reshape([a['bbox'] for a in annotations], (-1, 4)).astype(np.float64)
  return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], -1)


def overlaps(boxes: Any, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """IoU [n, m], and the share of each of the n boxes' area that lies on the others.

  `ops.boxes.iou_matrix` in NumPy, because JAX would compile it for each new shape.
  """
  x1, y1, x2, y2 = (side[:, None] for side in boxes.T)
  width = np.minimum(x2, others[:, 2]) - np.maximum(x1, others[:, 0])
  height = np.minimum(y2, others[:, 3]) - np.maximum(y1, others[:, 1])
  both = np.maximum(width, 0) * np.maximum(height, 0)
  area = (x2 - x1) * (y2 - y1)
  other = (others[:, 2] - others[:, 0]) * (others[:, 3] - others[:, 1])
  return both / np.maximum(area + other - both, 1e-6), both / np.maximum(area, 1e-6)


def match(detections: Any, iou: np.ndarray, true_classes: np.ndarray) -> np.ndarray:
  """[k, 2] (detection, true box) pairs of one image, greedy by score.

  Args:
    detections: Detections [N, ...] by falling score, in NumPy.
    iou: [N, m] with the true boxes.
    true_classes: [m].
  """
  usable = detections.valid & (detections.scores >= MIN_SCORE)
  fits = usable[:, None] & (detections.classes[:, None] == true_classes)
  left = np.where(fits & (iou >= POSITIVE_IOU), iou, 0.0)
  pairs = []
  for index in np.flatnonzero(left.any(-1)).tolist():
    best = int(left[index].argmax())
    if left[index, best] > 0:
      pairs.append((index, best))
      left[:, best] = 0.0
  return np.reshape(pairs, (-1, 2)).astype(int)


def _at_class(iou: np.ndarray, classes, truth: _Truth) -> np.ndarray:
  """IoU [n, m + 1] with the true boxes, 0 with those of other classes. The last column
  is 0, so that there is a maximum even in an image without boxes."""
  same = truth.classes == classes[:, None]
  return np.pad(np.where(same, iou, 0.0), [(0, 0), (0, 1)])


def _centerness(points: np.ndarray, boxes: np.ndarray) -> np.ndarray:
  """`ops.boxes.centerness` [n] of points in boxes, in NumPy like `overlaps`."""
  before, after = points - boxes[:, :2], boxes[:, 2:] - points
  ratios = np.minimum(before, after) / np.maximum(before, after)
  return np.sqrt(ratios.clip(0).prod(-1))


def _counts(boxes, truth: _Truth):
  """[n] bool: the box has an area and is not on a crowd."""
  _, on_crowd = overlaps(boxes, truth.crowds)
  return (boxes[:, 2:] > boxes[:, :2]).all(-1) & ~(on_crowd > 0.5).any(-1)


def _candidate_rows(found, points: np.ndarray, truth: _Truth, image_id: int) -> Rows:
  """Rows of an image's candidates, with their points [n, 2] in original px."""
  all_iou, _ = overlaps(found.boxes, truth.boxes)
  at_class = _at_class(all_iou, found.classes, truth)
  counts = _counts(found.boxes, truth)
  iou = at_class.max(-1)
  positive = counts & (iou >= POSITIVE_IOU)
  negative = counts & (all_iou.max(-1, initial=0.0) < NEGATIVE_IOU)
  outranking = [
    exceeding_pairs(scores[negative], scores[positive])
    for scores in (found.scores, found.class_scores)
  ]
  lowest = found.scores[positive].min(initial=np.inf)
  best_boxes = truth.boxes[at_class[positive].argmax(-1)]
  centerness = _centerness(points[positive], best_boxes)
  quality = np.full(len(iou), np.nan) if found.quality is None else found.quality
  table = np.stack([found.class_scores, quality, found.scores, iou, positive], axis=-1)
  # The image's id is the seed, so that the sample is the same in any batch or process.
  rng = np.random.default_rng(image_id)
  drawn = [
    rng.permutation(np.flatnonzero(group))[:_SAMPLES_PER_IMAGE]
    for group in (positive, negative)
  ]
  return {
    'pairs': np.array([[*outranking, positive.sum() * negative.sum()]]),
    'positives': np.column_stack([table[positive][:, [0, 2, 3]], centerness]),
    'negatives': np.array([[negative.sum(), (found.scores[negative] > lowest).sum()]]),
    'sample': table[np.concatenate(drawn)],
  }


def exceeding_pairs(below: np.ndarray, above: np.ndarray) -> float:
  """Number of pairs in which a value of `below` [n] exceeds one of `above` [m].

  Equal values count half.
  """
  ordered = np.sort(above)
  ranks = [np.searchsorted(ordered, below, side) for side in ('left', 'right')]
  return float(np.sum(ranks)) / 2


def _side_rows(
  found, sides: Sides, truth: _Truth, matches: np.ndarray, points, scale, box
) -> Rows:
  """Rows of an image's matched detections, given as `match` returns them."""
  index, true = matches.T
  anchors, scale = found.anchor_index[index], np.tile(scale, 2)
  strides, center = points.strides[anchors][:, None], points.centers[anchors]
  boxes = truth.boxes[true]
  true_boxes = boxes * scale
  before, after = center - true_boxes[:, :2], true_boxes[:, 2:] - center
  targets = np.concatenate([before, after], axis=-1) / strides
  errors = targets - sides.distance[index]
  std = found.edge_std[index] * scale / strides
  outputs, fit_kind = sides.outputs[index], side_distributions.FITS[box.kind]
  fit = fit_kind(outputs, errors, std, targets, box)
  return {
    'side_error': errors,
    'side_std': std,
    'side_cdf': fit.cdf,
    'side_density': fit.density,
    'side_crps': fit.crps,
    'side_px': strides / scale,
    'side_sigma': truth.edge_sigma[true],
    'side_kind': truth.edge_kind[true],
    'side_extent': np.tile(boxes[:, 2:] - boxes[:, :2], 2),
  }
