"""From a detector's raw predictions to a fixed number of boxes per image."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from gfl_jax.config import choose
from gfl_jax.errors import UserError
from gfl_jax.models import Predictions
from gfl_jax.models.representations import REPRESENTATIONS
from gfl_jax.models.scores import SCORES
from gfl_jax.ops import boxes as box_ops
from gfl_jax.ops import nms
from gfl_jax.ops.arrays import ArrayLike, gather_rows
from gfl_jax.ops.points import Points, level_slices


class Detections(NamedTuple):
  """The N best detections per image, by falling score; unused slots are all zero.

  Attributes:
    boxes: xyxy in px, of the network input or, with `scale_factors`, of the original.
    scores: in (0, 1].
    classes: 0..C-1.
    valid: False for an unused slot.
    edge_std: standard deviation of each side's distribution (left, top, right,
      bottom) in the px of `boxes`; 0 for a representation without a spread.
    anchor_index: the anchor that predicted the box, an index into `points`; None where
      an exported program found the box, which does not return it.
  """

  boxes: Float[ArrayLike, '*b n 4']
  scores: Float[ArrayLike, '*b n']
  classes: Int[ArrayLike, '*b n']
  valid: Bool[ArrayLike, '*b n']
  edge_std: Float[ArrayLike, '*b n 4']
  anchor_index: Int[ArrayLike, '*b n'] | None = None


class Candidates(NamedTuple):
  """(anchor, class) pairs before suppression; of the fields `Detections` also has, see
  there.

  Attributes:
    class_scores: sigmoid of the class logit; 0 marks a slot without a pair.
    quality: sigmoid of the quality logit; None if the score has no branch.
    scores: what the suppression ranks and reports (see `decode_detections`).
  """

  class_scores: Float[Array, '*b n']
  quality: Float[Array, '*b n'] | None
  scores: Float[Array, '*b n']
  classes: Int[Array, '*b n']
  boxes: Float[Array, '*b n 4']
  edge_std: Float[Array, '*b n 4']
  anchor_index: Int[Array, '*b n']


def check_choices(config: Any) -> None:
  """Raises a ValueError if `config.decode` asks for what does not exist, or for what
  the config's score or box does not have."""
  choose(REPRESENTATIONS, config.box.kind, 'box.kind')
  score = choose(SCORES, config.score.kind, 'score.kind')
  choose(_SUPPRESSIONS, config.decode.nms, 'decode.nms')
  if config.decode.nms == 'iou_guided' and score.use != 'branch':
    branches = [kind for kind, score in SCORES.items() if score.use == 'branch']
    raise UserError(
      f"decode.nms='iou_guided' ranks by a quality branch, which score.kind="
      f"{config.score.kind!r} has not: take one of {branches}, or decode.nms='greedy'"
    )
  voting, penalty = config.decode.variance_voting, config.decode.uncertainty_penalty
  if voting < 0:
    raise UserError(f'decode.variance_voting={voting} must be above 0, or 0 for none')
  if config.box.kind == 'dirac' and (voting or penalty):
    raise UserError(
      f"box.kind='dirac' has no spread, which decode.variance_voting={voting} and "
      f'decode.uncertainty_penalty={penalty} need: turn them off (0.0 and False), or '
      "take box.kind='gaussian' or 'general'"
    )


def decode_detections(
  predictions: Predictions,
  points: Points,
  image_sizes: Int[ArrayLike, 'b 2'],
  config: Any,
  *,
  scale_factors: Float[ArrayLike, 'b 2'] | None = None,
) -> Detections:
  """Decodes the predictions of a batch; static shapes, so it can be jitted.

  Per level the (anchor, class) pairs whose class score exceeds `score_threshold` are
  ranked together and the best `candidates_per_level` go on. Their boxes are clipped to
  the image, scaled back to the original image, freed of boxes with a side of `min_size`
  or less, and suppressed per class over all levels. All anchors of the canvas take
  part, as in mmdet: a box that lies wholly on the padding has no area left.

  The score is the class score, and by `config.decode`:
  - `nms='greedy'`: times the branch's quality, if there is one, after the threshold;
  - `nms='iou_guided'`: the quality alone ranks, and a box gets the best class score of
    those that it suppresses (IoU-Net);
  - `uncertainty_penalty`: times 1 - (mean over the sides of min(std in strides, 1)),
    before suppression (Gaussian YOLOv3). A box whose sides all have a std of a stride
    or more scores 0 and is dropped;
  - `variance_voting` sigma_t > 0: each box that is kept becomes the mean of the
    candidates around it, weighted by their IoU and precision (KL-Loss).

  Args:
    predictions: logits of A anchors.
    points: the A points of the canvas.
    image_sizes: (h, w) px of each image on the canvas, before padding. (0, 0) for a
      padding image, which gets no detection.
    config: the experiment; reads `config.decode`, `config.score` and `config.box`.
    scale_factors: (x, y) canvas px per original px, positive, 1 for a padding image;
      None keeps canvas px.

  Returns:
    `config.decode.max_detections` slots per image.

  Raises:
    ValueError: what `check_choices` raises, or predictions of another number of
      anchors.

  Source: mmdet 3.x `BaseDenseHead._predict_by_feat_single`; arXiv:1807.11590 (IoU-Net),
  1809.08545 (KL-Loss), 1904.04620 (Gaussian YOLOv3).
  """
  describe = _describer(predictions, points, image_sizes, config, scale_factors)

  def pairs(class_logits):
    return _best_pairs(class_logits, points, config.decode)

  return jax.vmap(lambda c: _suppress(c, config.decode))(describe(pairs))


def strongest_candidates(
  predictions: Predictions,
  points: Points,
  image_sizes: Int[ArrayLike, 'b 2'],
  config: Any,
  *,
  count: int,
  scale_factors: Float[ArrayLike, 'b 2'] | None = None,
) -> Candidates:
  """The `count` anchors of the highest class score, each with its best class.

  No threshold, no size filter and no suppression: for diagnostics. Fewer if there are
  fewer anchors. Arguments and errors are those of `decode_detections`.
  """
  describe = _describer(predictions, points, image_sizes, config, scale_factors)

  def pairs(class_logits):
    best, classes = class_logits.max(-1), class_logits.argmax(-1).astype(jnp.int32)
    logits, anchors = jax.lax.top_k(best, min(count, len(best)))
    return jax.nn.sigmoid(logits), classes[anchors], anchors

  return describe(pairs)


def _describer(predictions, points, image_sizes, config, scale_factors):
  """f(pairs) -> Candidates [B, n]; pairs: class logits [A, C] -> (class scores,
  classes, anchors) [n] of one image."""
  check_choices(config)
  num_anchors = predictions.class_logits.shape[-2]
  if num_anchors != len(points.strides):
    raise UserError(
      f'predictions have {num_anchors} anchors, points {len(points.strides)}: make the '
      'points for the canvas that the detector saw'
    )
  if scale_factors is None:
    scale_factors = jnp.ones(image_sizes.shape, jnp.float32)

  def describe(pairs):
    def one_image(image_predictions, size, scale):
      scores, classes, anchors = pairs(image_predictions.class_logits)
      return _describe(
        scores, classes, anchors, image_predictions, points, size, scale, config
      )

    return jax.vmap(one_image)(predictions, image_sizes, scale_factors)

  return describe


def _best_pairs(class_logits, points, config) -> tuple[Array, Array, Array]:
  """The best pairs of each level above the threshold, level after level."""
  levels = []
  for part in level_slices(points):
    class_scores = jax.nn.sigmoid(class_logits[part])
    num_anchors, num_classes = class_scores.shape
    # The best k pairs touch at most k anchors, and these are among the k anchors whose
    # best class scores most: ranking anchors first saves sorting all anchors x classes.
    k = min(config.candidates_per_level, num_anchors)
    _, anchors = jax.lax.top_k(class_scores.max(-1), k)
    k = min(config.candidates_per_level, k * num_classes)
    scores, pairs = jax.lax.top_k(class_scores[anchors].reshape(-1), k)
    scores = jnp.where(scores > config.score_threshold, scores, 0.0)
    anchors = anchors[pairs // num_classes] + part.start
    levels.append((scores, pairs % num_classes, anchors))
  return jax.tree.map(lambda *parts: jnp.concatenate(parts), *levels)


def _describe(
  class_scores, classes, anchors, predictions, points, image_size, scale, config
) -> Candidates:
  """Boxes and scores of one image's pairs."""
  representation = REPRESENTATIONS[config.box.kind]
  outputs = gather_rows(predictions.box_logits, anchors)
  std = representation.std(outputs, config.box)
  strides = jnp.asarray(points.strides)[anchors][:, None]
  boxes = box_ops.distances_to_boxes(
    jnp.asarray(points.centers)[anchors],
    representation.distance(outputs, config.box) * strides,
  )
  per_side = jnp.tile(scale, 2)[None]

  quality, scores = None, class_scores
  if predictions.quality_logits is not None:
    quality = jax.nn.sigmoid(predictions.quality_logits[anchors, 0])
    if config.decode.nms == 'greedy':
      scores = scores * quality
  if config.decode.uncertainty_penalty:
    scores = scores * (1 - jnp.minimum(std, 1).mean(-1))
  return Candidates(
    class_scores=class_scores,
    quality=quality,
    scores=scores,
    classes=classes,
    boxes=box_ops.clip_boxes(boxes, image_size) / per_side,
    edge_std=std * strides / per_side,
    anchor_index=anchors,
  )


def _greedy(candidates, scores, config):
  kept, valid = nms.class_aware_nms(
    candidates.boxes,
    scores,
    candidates.classes,
    iou_threshold=config.nms_iou,
    max_outputs=config.max_detections,
  )
  return kept, scores[kept], valid


def _iou_guided(candidates, scores, config):
  return nms.iou_guided_nms(
    candidates.boxes,
    scores,
    candidates.quality,
    candidates.classes,
    iou_threshold=config.nms_iou,
    max_outputs=config.max_detections,
  )


_SUPPRESSIONS = {'greedy': _greedy, 'iou_guided': _iou_guided}


def _suppress(candidates: Candidates, config) -> Detections:
  """Size filter, suppression and voting among one image's candidates."""
  boxes = candidates.boxes
  large = (boxes[:, 2:] - boxes[:, :2] > config.min_size).all(-1)
  scores = jnp.where(large, candidates.scores, 0.0)
  kept, kept_scores, valid = _SUPPRESSIONS[config.nms](candidates, scores, config)
  kept_boxes, classes = boxes[kept], candidates.classes[kept]
  if config.variance_voting:
    kept_boxes = nms.variance_voting(
      kept_boxes,
      classes,
      boxes,
      scores,
      candidates.classes,
      candidates.edge_std,
      sigma_t=config.variance_voting,
    )
  found = Detections(
    boxes=kept_boxes,
    scores=kept_scores,
    classes=classes,
    valid=valid,
    edge_std=candidates.edge_std[kept],
    anchor_index=candidates.anchor_index[kept],
  )
  return jax.tree.map(
    lambda x: jnp.where(valid.reshape(-1, *[1] * (x.ndim - 1)), x, jnp.zeros_like(x)),
    found,
  )
