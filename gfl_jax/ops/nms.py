"""Non-maximum suppression with outputs of a fixed size."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from gfl_jax.ops import boxes as box_ops
from gfl_jax.ops.types import ArrayLike


def class_aware_nms(
  boxes: Float[ArrayLike, 'n 4'],
  scores: Float[ArrayLike, ' n'],
  classes: Int[ArrayLike, ' n'],
  *,
  iou_threshold: float,
  max_outputs: int,
) -> tuple[Int[Array, ' m'], Bool[Array, ' m']]:
  """Greedy NMS per class: the `max_outputs` best boxes that no better one covers.

  Exact greedy semantics at every threshold: boxes are taken by falling score (equal
  scores: lowest index first), and each one taken removes the boxes of its class whose
  IoU with it exceeds the threshold. One argmax and one row of IoUs per output: no
  [n, n] matrix and no sort. To be vmapped over images.

  Args:
    boxes: candidates in pixels.
    scores: positive for candidates; those with a score of 0 or less, nan or infinite,
      are never returned and suppress nothing, so 0 marks a padding row.
    classes: a box only competes with boxes of its own class.
    iou_threshold: in [0, 1]; suppression needs an IoU above it (not equal).
    max_outputs: static size of the result; may exceed n.

  Returns:
    indices: rows of the kept boxes by falling score, 0 where there is none.
    valid: which of the indices are real.

  Raises:
    ValueError: a threshold outside [0, 1] or no output at all.
  """
  if not 0 <= iou_threshold <= 1 or max_outputs < 1:
    raise ValueError(f'{iou_threshold=} must be in [0, 1], {max_outputs=} at least 1')
  boxes, scores, classes = map(jnp.asarray, (boxes, scores, classes))
  if not len(boxes):
    return jnp.zeros(max_outputs, jnp.int32), jnp.zeros(max_outputs, bool)

  def take_best(live, _):
    best = jnp.argmax(live)
    valid = live[best] > 0
    covered = box_ops.iou_matrix(boxes[best][None], boxes)[0] > iou_threshold
    covered = (covered & (classes == classes[best])).at[best].set(True)
    return jnp.where(covered, 0, live), (jnp.where(valid, best, 0), valid)

  live = jnp.where((scores > 0) & jnp.isfinite(scores), scores, 0)
  _, (indices, valid) = jax.lax.scan(take_best, live, length=max_outputs)
  return indices.astype(jnp.int32), valid
