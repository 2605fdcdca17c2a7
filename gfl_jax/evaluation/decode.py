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
  """(anchor, class) pairs before suppression; other fields are those of `Detections`.

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


def check_decoding(config: Any) -> None:
  """Raises ValueError for an unknown kind, or if `config.decode` needs a quality branch
  or a spread and the config's score or box has none."""
  choose(REPRESENTATIONS, config.box.kind, 'box.kind')
  score = choose(SCORES, config.score.kind, 'score.kind')
  choose(_SUPPRESSIONS, config.decode.nms, 'decode.nms')
  if config.decode.nms == 'iou_guided' and score.use != 'branch':
    branches = [kind for kind, score in SCORES.items() if score.use == 'branch']
    raise UserError(
      f"decode.nms='iou_guided' ranks by a quality branch, and score.kind="
      f"{config.score.kind!r} has none: take one of {branches}, or decode.nms='greedy'"
    )
  voting, penalty = config.decode.variance_voting, config.decode.uncertainty_penalty
  if voting < 0:
    raise UserError(f'decode.variance_voting={voting} must be above 0, or 0 for none')
  if config.box.kind == 'dirac' and (voting or penalty):
    raise UserError(
      f"box.kind='dirac' has no spread, but decode.variance_voting={voting} or "
      f'decode.uncertainty_penalty={penalty} needs one: set them to 0.0 and False, or '
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

  On each level the `candidates_per_level` best (anchor, class) pairs are kept whose
  class score exceeds `score_threshold`. Their boxes are clipped to the image and scaled
  back to the original image. Boxes with a width or height of `min_size` or less are
  dropped, and the others suppressed per class over all levels. All anchors of the
  canvas take part, as in mmdet: a box that is wholly on the padding has no area left.

  The score is the class score, changed by `config.decode`:
  - `nms='greedy'`: after the threshold it is multiplied by the quality, if the score
    has a branch for it;
  - `nms='iou_guided'`: boxes are ranked by their quality alone; a kept box gets the
    best class score of itself and those that it suppresses (IoU-Net);
  - `uncertainty_penalty`: before suppression the score is multiplied by 1 - (mean over
    the sides of min(std in strides, 1)) (Gaussian YOLOv3). A box whose sides all have a
    std of at least a stride scores 0 and is dropped;
  - `variance_voting` sigma_t > 0: each kept box becomes the mean of the candidates
    around it, weighted by their IoU and precision (KL-Loss).

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

  def one_image(predictions, size, scale):
    pairs = _best_pairs(predictions.class_logits, points, config.decode)
    candidates = _describe(pairs, predictions, points, size, scale, config)
    return _suppress(candidates, config.decode)

  return _map_images(one_image, predictions, points, image_sizes, scale_factors, config)


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

  def one_image(predictions, size, scale):
    logits = predictions.class_logits
    best, classes = logits.max(-1), logits.argmax(-1).astype(jnp.int32)
    best, anchors = jax.lax.top_k(best, min(count, len(best)))
    pairs = jax.nn.sigmoid(best), classes[anchors], anchors
    return _describe(pairs, predictions, points, size, scale, config)

  return _map_images(one_image, predictions, points, image_sizes, scale_factors, config)


def _map_images(one_image, predictions, points, image_sizes, scale_factors, config):
  """`one_image(predictions, size, scale)` for each image, once the arguments fit."""
  check_decoding(config)
  num_anchors = predictions.class_logits.shape[-2]
  if num_anchors != len(points.strides):
    raise UserError(
      f'predictions have {num_anchors} anchors, points {len(points.strides)}: make the '
      'points for the canvas that the detector saw'
    )
  if scale_factors is None:
    scale_factors = jnp.ones(image_sizes.shape, jnp.float32)
  return jax.vmap(one_image)(predictions, image_sizes, scale_factors)


def _best_pairs(class_logits, points, config) -> tuple[Array, Array, Array]:
  """The best pairs of each level above the threshold, level after level."""
  levels = []
  for part in level_slices(points):
    class_scores = jax.nn.sigmoid(class_logits[part])
    num_anchors, num_classes = class_scores.shape
    # The best k pairs have at most k anchors, which are among the k anchors of highest
    # class score: ranking anchors first avoids a sort of all anchors x classes.
    k = min(config.candidates_per_level, num_anchors)
    _, anchors = jax.lax.top_k(class_scores.max(-1), k)
    k = min(config.candidates_per_level, k * num_classes)
    scores, pairs = jax.lax.top_k(class_scores[anchors].reshape(-1), k)
    scores = jnp.where(scores > config.score_threshold, scores, 0.0)
    anchors = anchors[pairs // num_classes] + part.start
    levels.append((scores, pairs % num_classes, anchors))
  return jax.tree.map(lambda *parts: jnp.concatenate(parts), *levels)


def _describe(pairs, predictions, points, image_size, scale, config) -> Candidates:
  """Boxes and scores of one image's pairs: (class scores, classes, anchors) [n]."""
  class_scores, classes, anchors = pairs
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


def _greedy(boxes, scores, quality, classes, **settings):
  del quality
  kept, valid = nms.class_aware_nms(boxes, scores, classes, **settings)
  return kept, scores[kept], valid


_SUPPRESSIONS = {'greedy': _greedy, 'iou_guided': nms.iou_guided_nms}


def _suppress(candidates: Candidates, config) -> Detections:
  """Size filter, suppression and voting among one image's candidates."""
  boxes, classes, std = candidates.boxes, candidates.classes, candidates.edge_std
  large = (boxes[:, 2:] - boxes[:, :2] > config.min_size).all(-1)
  scores = jnp.where(large, candidates.scores, 0.0)
  settings = dict(iou_threshold=config.nms_iou, max_outputs=config.max_detections)
  kept, kept_scores, valid = _SUPPRESSIONS[config.nms](
    boxes, scores, candidates.quality, classes, **settings
  )
  kept_boxes, kept_classes = boxes[kept], classes[kept]
  if config.variance_voting:
    among = boxes, scores, classes, std
    sigma_t = config.variance_voting
    kept_boxes = nms.variance_voting(kept_boxes, kept_classes, *among, sigma_t=sigma_t)
  found = Detections(
    boxes=kept_boxes,
    scores=kept_scores,
    classes=kept_classes,
    valid=valid,
    edge_std=std[kept],
    anchor_index=candidates.anchor_index[kept],
  )
  return jax.tree.map(
    lambda x: jnp.where(valid.reshape(-1, *[1] * (x.ndim - 1)), x, jnp.zeros_like(x)),
    found,
  )
