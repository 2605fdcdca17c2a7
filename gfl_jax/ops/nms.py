"""Suppression of overlapping boxes, and weighted means of them, in static shapes."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from gfl_jax.ops import boxes as box_ops
from gfl_jax.ops.arrays import ArrayLike


# Jitted, so that it stays a function in a larger program: an export to ONNX replaces it
# by the runtime's own operator.
@functools.partial(jax.jit, static_argnames=('iou_threshold', 'max_outputs'))
def class_aware_nms(
  boxes: Float[ArrayLike, 'n 4'],
  scores: Float[ArrayLike, ' n'],
  classes: Int[ArrayLike, ' n'],
  *,
  iou_threshold: float,
  max_outputs: int,
) -> tuple[Int[Array, ' m'], Bool[Array, ' m']]:
  """Greedy NMS per class: the `max_outputs` best boxes that no better one suppresses.

  Exactly greedy: boxes are taken by falling score (of equal scores the lowest index
  first), and each one taken removes the boxes of its class whose IoU with it exceeds
  the threshold. It costs one argmax and one row of IoUs per output; there is no [n, n]
  matrix and no sort. To be vmapped over images.

  Args:
    boxes: candidates in pixels.
    scores: positive for candidates; rows with a score of 0 or less, nan or infinity are
      never returned and suppress nothing, so 0 marks a padding row.
    classes: a box only competes with boxes of its own class.
    iou_threshold: in [0, 1]; suppression needs an IoU above it (not equal).
    max_outputs: static size of the result; may exceed n.

  Returns:
    indices: rows of the kept boxes by falling score, 0 where there is none.
    valid: which of the indices are real.

  Raises:
    ValueError: a threshold outside [0, 1] or no output at all.
  """
  _check_nms(iou_threshold, max_outputs)
  boxes, scores, classes = map(jnp.asarray, (boxes, scores, classes))
  if not len(boxes):
    return jnp.zeros(max_outputs, jnp.int32), jnp.zeros(max_outputs, bool)

  def take_best(live, _):
    best = jnp.argmax(live)
    valid = live[best] > 0
    covered = box_ops.iou_matrix(boxes[best][None], boxes)[0] > iou_threshold
    # A comparison marks the box itself, because a TPU does not fuse a scatter.
    covered = (covered & (classes == classes[best])) | (rows == best)
    return jnp.where(covered, 0, live), (jnp.where(valid, best, 0), valid)

  rows = jnp.arange(len(boxes))
  live = jnp.where((scores > 0) & jnp.isfinite(scores), scores, 0)
  _, (indices, valid) = jax.lax.scan(take_best, live, length=max_outputs)
  return indices.astype(jnp.int32), valid


def iou_guided_nms(
  boxes: Float[ArrayLike, 'n 4'],
  scores: Float[ArrayLike, ' n'],
  quality: Float[ArrayLike, ' n'],
  classes: Int[ArrayLike, ' n'],
  *,
  iou_threshold: float,
  max_outputs: int,
) -> tuple[Int[Array, ' m'], Float[Array, ' m'], Bool[Array, ' m']]:
  """NMS per class that keeps the best placed box and gives it the best score.

  Boxes are taken by falling quality (of equal ones the lowest index first). Each one
  taken removes the boxes of its class whose IoU with it exceeds the threshold, and its
  score becomes the highest of its own and theirs. When none is left, the `max_outputs`
  of highest score are returned. It costs one argmax and one row of IoUs per box taken:
  more than `class_aware_nms`, which stops after `max_outputs`. To be vmapped over
  images.

  Args:
    boxes: candidates in pixels.
    scores: as in `class_aware_nms`.
    quality: how well each box is placed, such as its predicted IoU; nan ranks last.
    classes: a box only competes with boxes of its own class.
    iou_threshold: in [0, 1]; suppression needs an IoU above it (not equal).
    max_outputs: static size of the result; may exceed n.

  Returns:
    indices: rows of the kept boxes by falling score, 0 where there is none.
    scores: of the kept boxes, 0 where there is none.
    valid: which of the indices are real.

  Raises:
    ValueError: a threshold outside [0, 1] or no output at all.

  Source: Jiang et al., arXiv:1807.11590, algorithm 1.
  """
  _check_nms(iou_threshold, max_outputs)
  boxes, scores, quality, classes = map(jnp.asarray, (boxes, scores, quality, classes))
  # Finite, so that boxes no longer live can rank below all others.
  quality = jnp.nan_to_num(quality, nan=jnp.finfo(quality.dtype).min)

  def take_best(state):
    live, kept_scores = state
    best = jnp.argmax(jnp.where(live, quality, -jnp.inf))
    covered = box_ops.iou_matrix(boxes[best][None], boxes)[0] > iou_threshold
    covered = (covered & (classes == classes[best])).at[best].set(True) & live
    score = jnp.max(jnp.where(covered, scores, 0))
    return live & ~covered, kept_scores.at[best].set(score)

  live = (scores > 0) & jnp.isfinite(scores)
  # At least as long as the result: rows beyond the boxes stay 0.
  scores_of_all = jnp.zeros(max(len(boxes), max_outputs), scores.dtype)
  if len(boxes):
    state, any_live = (live, jnp.zeros_like(scores)), lambda state: jnp.any(state[0])
    _, kept = jax.lax.while_loop(any_live, take_best, state)
    scores_of_all = scores_of_all.at[: len(boxes)].set(kept)
  best_scores, indices = jax.lax.top_k(scores_of_all, max_outputs)
  valid = best_scores > 0
  return jnp.where(valid, indices, 0), best_scores, valid


def variance_voting(
  kept_boxes: Float[ArrayLike, 'm 4'],
  kept_classes: Int[ArrayLike, ' m'],
  boxes: Float[ArrayLike, 'n 4'],
  scores: Float[ArrayLike, ' n'],
  classes: Int[ArrayLike, ' n'],
  std: Float[ArrayLike, 'n 4'],
  *,
  sigma_t: float,
) -> Float[Array, 'm 4']:
  """Each kept box as a mean of the candidates around it, weighted by their certainty.

  The mean is over the candidates of its class that overlap it, itself included: with
  p = exp(-(1 - IoU)^2 / sigma_t), coordinate x becomes
  sum(p * x / std^2) / sum(p / std^2). To be vmapped over images.

  Args:
    kept_boxes: results of a suppression, in pixels.
    kept_classes: their classes.
    boxes: candidates before the suppression, in pixels.
    scores: positive for candidates; 0 or less, or nan, marks a padding row.
    classes: of the candidates.
    std: standard deviation of each candidate's sides in pixels, clipped to
      [1e-6, 1e6]: where all are 0, the means are weighted by p alone.
    sigma_t: above 0; the larger it is, the more a candidate of low IoU counts.

  Returns:
    The moved boxes; a box that no candidate overlaps is unchanged.

  Raises:
    ValueError: a sigma_t that is not above 0.

  Source: He et al., arXiv:1809.08545, algorithm 1; sigma_t is 0.01 in their code.
  """
  if not sigma_t > 0:
    raise ValueError(f'{sigma_t=} must be above 0')
  kept_boxes, boxes = jnp.asarray(kept_boxes), jnp.asarray(boxes)
  if not len(boxes):
    return kept_boxes
  boxes = jnp.where(scores[:, None] > 0, boxes, 0)  # the padding may hold nan
  iou = box_ops.iou_matrix(kept_boxes, boxes)
  votes = (iou > 0) & (kept_classes[:, None] == classes[None])
  # The softmax of the weights' logarithms is finite for every std.
  precision = -2 * jnp.log(jnp.clip(std, 1e-6, 1e6))
  weights = (-jnp.square(1 - iou) / sigma_t)[:, :, None] + precision[None]
  weights = jax.nn.softmax(weights, axis=1, where=votes[:, :, None])
  moved = jnp.sum(weights * boxes[None], axis=1)
  return jnp.where(jnp.any(votes, axis=1, keepdims=True), moved, kept_boxes)


def _check_nms(iou_threshold, max_outputs):
  if not 0 <= iou_threshold <= 1 or max_outputs < 1:
    raise ValueError(f'{iou_threshold=} must be in [0, 1], {max_outputs=} at least 1')
