"""From a detector's raw predictions to a fixed number of boxes per image."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from gfl_jax.choices import choose
from gfl_jax.models import Predictions
from gfl_jax.ops import boxes as box_ops
from gfl_jax.ops import distributions, nms
from gfl_jax.ops.points import Points, level_slices
from gfl_jax.ops.types import ArrayLike


class Detections(NamedTuple):
  """The N best detections per image, by falling score; unused slots are all zero.

  Attributes:
    boxes: xyxy in px, of the network input or, with `scale_factors`, of the original.
    scores: in (0, 1].
    classes: 0..C-1.
    valid: False for an unused slot.
    edge_std: standard deviation of each side's distribution (left, top, right,
      bottom) in the px of `boxes`.
    anchor_index: the point that predicted the box, an index into `points`.
  """

  boxes: Float[Array, '*b n 4']
  scores: Float[Array, '*b n']
  classes: Int[Array, '*b n']
  valid: Bool[Array, '*b n']
  edge_std: Float[Array, '*b n 4']
  anchor_index: Int[Array, '*b n']


class _Candidates(NamedTuple):
  """(anchor, class) pairs of one image; a score of 0 marks a slot without a pair."""

  scores: Array
  classes: Array
  anchors: Array


def _general_distances(box_logits: Array, box_config: Any):
  """Mean and standard deviation of the four distributions, in strides."""
  grid = distributions.BinGrid(box_config.start, box_config.stop, box_config.num_bins)
  mean = distributions.expectation(box_logits, grid)
  return mean, jnp.sqrt(distributions.variance(box_logits, grid))


# box.kind -> f(box_logits [*, 4, n], config.box) -> (distances, std), both in strides.
_DISTANCES = {'general': _general_distances}


def decode_detections(
  predictions: Predictions,
  points: Points,
  image_sizes: Int[ArrayLike, 'b 2'],
  config: Any,
  *,
  scale_factors: Float[ArrayLike, 'b 2'] | None = None,
) -> Detections:
  """Decodes the predictions of a batch; static shapes, so it can be jitted.

  Per level the (anchor, class) pairs whose score exceeds `score_threshold` are ranked
  together and the best `candidates_per_level` go on. Their boxes are clipped to the
  image, scaled back to the original image, freed of boxes with a side of `min_size` or
  less, and suppressed per class over all levels. All anchors of the canvas take part,
  as in mmdet: a box that lies wholly on the padding has no area left after clipping.

  Args:
    predictions: logits of A anchors; `quality_logits`, if any, scale the score after
      the threshold.
    points: the A points of the canvas.
    image_sizes: (h, w) px of each image on the canvas, before padding. (0, 0) for a
      padding image, which gets no detection.
    config: the experiment; reads `config.decode` and `config.box`.
    scale_factors: (x, y) canvas px per original px, positive, 1 for a padding image;
      None keeps canvas px.

  Returns:
    `config.decode.max_detections` slots per image.

  Raises:
    ValueError: unknown `config.box.kind`, or predictions of another number of anchors.

  Source: mmdet 3.x `BaseDenseHead._predict_by_feat_single`.
  """
  num_anchors = predictions.class_logits.shape[-2]
  if num_anchors != len(points.strides):
    raise ValueError(
      f'predictions have {num_anchors} anchors, points {len(points.strides)}: make the '
      'points for the canvas that the detector saw'
    )
  to_distances = choose(_DISTANCES, config.box.kind, 'box.kind')
  if scale_factors is None:
    scale_factors = jnp.ones(image_sizes.shape, jnp.float32)

  def decode_image(image_predictions, image_size, scale):
    candidates = _best_pairs(image_predictions, points, config.decode)
    box_logits = image_predictions.box_logits[candidates.anchors]
    distances, std = to_distances(box_logits, config.box)
    return _decode_candidates(
      candidates, distances, std, points, image_size, scale, config.decode
    )

  return jax.vmap(decode_image)(predictions, image_sizes, scale_factors)


def _best_pairs(predictions: Predictions, points: Points, config) -> _Candidates:
  """The best pairs of each level above the threshold, level after level."""
  levels = []
  for part in level_slices(points):
    class_scores = jax.nn.sigmoid(predictions.class_logits[part])
    num_anchors, num_classes = class_scores.shape
    # The best k pairs touch at most k anchors, and these are among the k anchors whose
    # best class scores most: ranking anchors first saves sorting all anchors x classes.
    k = min(config.candidates_per_level, num_anchors)
    _, anchors = jax.lax.top_k(class_scores.max(-1), k)
    k = min(config.candidates_per_level, k * num_classes)
    scores, pairs = jax.lax.top_k(class_scores[anchors].reshape(-1), k)
    scores = jnp.where(scores > config.score_threshold, scores, 0.0)
    anchors = anchors[pairs // num_classes] + part.start
    levels.append(_Candidates(scores, pairs % num_classes, anchors))
  candidates = jax.tree.map(lambda *parts: jnp.concatenate(parts), *levels)
  if predictions.quality_logits is None:
    return candidates
  quality = jax.nn.sigmoid(predictions.quality_logits[candidates.anchors, 0])
  return candidates._replace(scores=candidates.scores * quality)


def _decode_candidates(
  candidates, distances, std, points, image_size, scale, config
) -> Detections:
  """Boxes of one image's candidates, then size filter and suppression."""
  strides = jnp.asarray(points.strides)[candidates.anchors][:, None]
  boxes = box_ops.distances_to_boxes(
    jnp.asarray(points.centers)[candidates.anchors], distances * strides
  )
  per_side = jnp.tile(scale, 2)[None]
  boxes = box_ops.clip_boxes(boxes, image_size) / per_side
  large = (boxes[:, 2:] - boxes[:, :2] > config.min_size).all(-1)

  kept, valid = nms.class_aware_nms(
    boxes,
    jnp.where(large, candidates.scores, 0.0),
    candidates.classes,
    iou_threshold=config.nms_iou,
    max_outputs=config.max_detections,
  )
  found = Detections(
    boxes=boxes[kept],
    scores=candidates.scores[kept],
    classes=candidates.classes[kept],
    valid=valid,
    edge_std=(std * strides / per_side)[kept],
    anchor_index=candidates.anchors[kept],
  )
  return jax.tree.map(
    lambda x: jnp.where(valid.reshape(-1, *[1] * (x.ndim - 1)), x, jnp.zeros_like(x)),
    found,
  )
