"""What the diagnostics look at: candidates, detections and sides beside the truth.

`Observations` keeps a few rows per image, whatever the number of anchors, so memory is
bounded; `diagnostics.summarize` makes the measures of them. The definitions of a true
positive, a true negative and a matched detection are in diagnostics.py.

NumPy on the host.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from gfl_jax.evaluation import densities, ranks
from gfl_jax.evaluation.decode import Candidates, Detections
from gfl_jax.models import make_anchors

NUM_CANDIDATES = 200
POSITIVE_IOU, NEGATIVE_IOU = 0.5, 0.1
MIN_SCORE = 0.05  # of a detection whose sides are judged
_SAMPLES_PER_IMAGE = 10
Rows = dict[str, np.ndarray]


class Sides(NamedTuple):
  """The sides of the detections as predicted, before voting and clipping.

  Attributes:
    distance: [*, 4] from the anchor point, in strides.
    outputs: [*, 4, n] of the head, which the distance was decoded from.
  """

  distance: np.ndarray
  outputs: np.ndarray


class _Truth(NamedTuple):
  """The true boxes of an image in original px; crowds apart."""

  boxes: np.ndarray  # [m, 4] xyxy
  classes: np.ndarray  # [m]
  edge_sigma: np.ndarray  # [m, 4] px, nan where unknown
  edge_kind: np.ndarray  # [m, 4] index into the kinds, -1 where unknown
  crowds: np.ndarray  # [k, 4] xyxy


class Observations:
  """Collects what the measures need, batch by batch."""

  def __init__(self, ground_truth: Mapping, config: Any):
    """Args: ground_truth: COCO's form, with `edge_sigma` and `edge_kind` (l, t, r, b)
    of an annotation where they are known; config: the experiment."""
    self._config = config
    annotations = ground_truth['annotations']
    named = {kind for a in annotations for kind in a.get('edge_kind', ())}
    self.edge_kinds = sorted(named)
    self._truths = _read_truths(ground_truth, self.edge_kinds)
    self._points: dict[tuple, Any] = {}
    self._rows: list[Rows] = []

  def add(
    self,
    batch: Mapping[str, np.ndarray],
    detections: Detections,
    candidates: Candidates,
    sides: Sides,
  ) -> None:
    """Takes a batch, all in NumPy arrays; boxes are in original px.

    Args:
      batch: as the data set gives it.
      detections: [B, N, ...].
      candidates: [B, `NUM_CANDIDATES` or all, ...].
      sides: [B, N, ...], of the detections.
    """
    canvas = batch['images'].shape[1:3]
    if canvas not in self._points:
      self._points[canvas] = make_anchors(self._config, canvas)
    points = self._points[canvas]
    for i, image_id in enumerate(batch['image_ids'].tolist()):
      if image_id == -1:
        continue
      truth = self._truths[image_id]
      found = _row(detections, i)
      scale = np.tile(batch['scales'][i], 2)
      rows = _candidate_rows(_row(candidates, i), truth, image_id)
      rows |= _detection_rows(found, truth)
      rows |= _side_rows(found, _row(sides, i), truth, points, scale, self._config.box)
      self._rows.append({k: v.astype(np.float32) for k, v in rows.items()})

  def rows(self) -> Rows:
    """All that was collected, to be joined with that of other processes."""
    return join([_no_rows(), *self._rows])


def join(parts: Sequence[Rows]) -> Rows:
  """One table of several, in their order."""
  return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _no_rows() -> Rows:
  """The columns of `Rows`, with their shapes, for a process without images."""
  shapes = {
    'pairs': (3,),  # outranking by final score, by class score, of how many
    'positives': (3,),  # class score, final score, IoU
    'negatives_seen': (),  # per image
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
  }
  return {name: np.zeros((0, *shape), np.float32) for name, shape in shapes.items()}


def _read_truths(ground_truth: Mapping, kinds: Sequence[str]) -> dict[int, _Truth]:
  label = {c['id']: i for i, c in enumerate(ground_truth['categories'])}
  index = {kind: i for i, kind in enumerate(kinds)}
  per_image: dict[int, list] = {image['id']: [] for image in ground_truth['images']}
  for annotation in ground_truth['annotations']:
    per_image[annotation['image_id']].append(annotation)
  truths = {}
  for image_id, annotations in per_image.items():
    single = [a for a in annotations if not a['iscrowd']]
    unknown = [np.nan] * 4
    truths[image_id] = _Truth(
      boxes=_xyxy(single),
      classes=np.array([label[a['category_id']] for a in single], int),
      edge_sigma=np.reshape([a.get('edge_sigma', unknown) for a in single], (-1, 4)),
      edge_kind=np.reshape(
        [[index.get(k, -1) for k in a.get('edge_kind', unknown)] for a in single],
        (-1, 4),
      ),
      crowds=_xyxy([a for a in annotations if a['iscrowd']]),
    )
  return truths


def _xyxy(annotations: list) -> np.ndarray:
  boxes = np.reshape([a['bbox'] for a in annotations], (-1, 4)).astype(np.float64)
  return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], -1)


def overlaps(boxes: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """IoU [n, m], and the share of each of the n boxes' area that lies on the others.

  `ops.boxes.iou_matrix` for arrays of ever new shapes, which jax would compile anew.
  """
  low = np.maximum(boxes[:, None, :2], others[None, :, :2])
  high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
  both = np.maximum(high - low, 0).prod(-1)
  area = lambda x: (x[:, 2:] - x[:, :2]).prod(-1)
  own, other = area(boxes)[:, None], area(others)[None]
  return both / np.maximum(own + other - both, 1e-6), both / np.maximum(own, 1e-6)


def match(
  detections: Detections, true_boxes: np.ndarray, true_classes: np.ndarray
) -> np.ndarray:
  """[k, 2] (detection, true box) pairs of one image, greedy by score."""
  usable = detections.valid & (detections.scores >= MIN_SCORE)
  iou, _ = overlaps(detections.boxes, true_boxes)
  fits = usable[:, None] & (detections.classes[:, None] == true_classes[None])
  iou = np.where(fits & (iou >= POSITIVE_IOU), iou, 0.0)
  pairs = []
  order = np.argsort(-detections.scores, kind='stable')
  for index in order[iou.any(-1)[order]].tolist():
    best = int(iou[index].argmax())
    if iou[index, best] > 0:
      pairs.append((index, best))
      iou[:, best] = 0.0
  return np.reshape(pairs, (-1, 2)).astype(int)


def _judged(boxes, classes, truth: _Truth):
  """IoU with the best true box of the class and of any class; and what counts."""
  iou, _ = overlaps(boxes, truth.boxes)
  best = iou.max(-1, initial=0.0)
  same = truth.classes[None] == classes[:, None]
  at_class = np.where(same, iou, 0.0).max(-1, initial=0.0)
  _, on_crowd = overlaps(boxes, truth.crowds)
  counts = (boxes[:, 2:] > boxes[:, :2]).all(-1)
  return at_class, best, counts & ~(on_crowd > 0.5).any(-1)


def _candidate_rows(found: Candidates, truth: _Truth, image_id: int) -> Rows:
  iou, best, counts = _judged(found.boxes, found.classes, truth)
  positive = counts & (iou >= POSITIVE_IOU)
  negative = counts & (best < NEGATIVE_IOU)
  outranking = [
    ranks.exceeding_pairs(scores[negative], scores[positive])
    for scores in (found.scores, found.class_scores)
  ]
  table = np.stack(
    [found.class_scores, found.quality, found.scores, iou, positive], axis=-1
  )
  # Drawn by the image's own seed: the same sample in whatever batch or process.
  rng = np.random.default_rng(image_id)
  drawn = [
    rng.permutation(np.flatnonzero(group))[:_SAMPLES_PER_IMAGE]
    for group in (positive, negative)
  ]
  return {
    'pairs': np.array([[*outranking, positive.sum() * negative.sum()]]),
    'positives': table[positive][:, [0, 2, 3]],
    'negatives_seen': np.array([negative.sum()]),
    'sample': table[np.concatenate(drawn)],
  }


def _detection_rows(found: Detections, truth: _Truth) -> Rows:
  iou, _, counts = _judged(found.boxes, found.classes, truth)
  kept = counts & found.valid
  return {'detections': np.stack([found.scores, iou], -1)[kept]}


def _side_rows(found, sides: Sides, truth: _Truth, points, scale, box_config) -> Rows:
  index, true_index = match(found, truth.boxes, truth.classes).T
  anchors = found.anchor_index[index]
  strides, center = points.strides[anchors][:, None], points.centers[anchors]
  true_boxes = truth.boxes[true_index] * scale
  targets = np.concatenate(
    [center - true_boxes[:, :2], true_boxes[:, 2:] - center], axis=-1
  )
  targets = targets / strides
  errors = targets - sides.distance[index]
  std = found.edge_std[index] * scale / strides
  fit = densities.FITS[box_config.kind](
    sides.outputs[index], errors, std, targets, box_config
  )
  return {
    'side_error': errors,
    'side_std': std,
    'side_cdf': fit.cdf,
    'side_density': fit.density,
    'side_crps': fit.crps,
    'side_px': strides / scale,
    'side_sigma': truth.edge_sigma[true_index],
    'side_kind': truth.edge_kind[true_index],
  }


def _row(tree, i: int):
  """The i-th row of each array of a NamedTuple."""
  return type(tree)(*(values[i] for values in tree))
