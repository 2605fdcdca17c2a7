"""The training objective: the only place that divides a loss by anything.

Every divisor is a sum over the whole batch of all devices, so a batch gives the same
loss and the same gradients however it is split, if no positive is dropped.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from gfl_jax.config import choose
from gfl_jax.models.detector import Predictions
from gfl_jax.models.scores import SCORES
from gfl_jax.ops import assignment, losses
from gfl_jax.ops.points import Points
from gfl_jax.ops.sparse_targets import class_loss_sum
from gfl_jax.training import scalars
from gfl_jax.training.loss_terms import BOX_LOSSES, EDGE_LOSSES, class_function
from gfl_jax.training.targets import make_targets, rows_of

Scalar = Float[Array, '']


class Normalizers(NamedTuple):
  """The two divisors, summed over all images of all devices.

  Attributes:
    class_divisor: N, of the class and the quality term: sum over images of max(number
      of positive anchors, 1); with a heatmap, of max(number of its peaks, 1).
    weight_sum: W, of the box and the edge term: sum over positives of their weight.
  """

  class_divisor: Scalar
  weight_sum: Scalar


def detection_loss(
  predictions: Predictions, batch: Mapping[str, Any], points: Points, config
) -> tuple[Scalar, dict[str, Scalar]]:
  """The loss of a whole batch on one device.

  With w = the weight of a positive (`box_loss.weighting`: GFL's is its detached largest
  class score), all lengths in strides:
  ```
  class   = sum over anchors on an image and classes of class_loss(logit, target) / N
  quality = sum over positives of BCE(quality logit, label) / N, if there is a branch
  box     = sum over positives of w * box_loss(decoded, matched) / max(W, floor)
  edge    = sum over positives of w * mean over sides of edge_loss / max(W, floor)
  N = sum over images of max(positives, 1);  W = sum over positives of w
  ```
  each times its weight in the config. A class target is 0, and at a positive's own
  class 1, or its quality if the score is joint; a guided score weights that one entry
  by the quality. CornerNet's heatmap is the target of all entries, and N its peaks.
  Qualities carry no gradient. The decoded box is clamped neither to a grid nor to the
  image, DFL's target is clamped to just inside the grid. Without any box in the batch,
  quality, box and edge are exactly 0.

  Args:
    predictions: class_logits [B, A, C], box_logits [B, A, 4, n] and, if the score has a
      branch, quality_logits [B, A, 1].
    batch: `boxes` [B, G, 4] pixels, `labels` [B, G], `valid` [B, G] and `image_sizes`
      [B, 2] (height, width before padding); `dropped_boxes` [B] if present is counted.
    points: of the canvas, A in all.
    config: an experiment's config.

  Returns:
    The loss and a dict of named scalars (see `scalars.summary`).

  Raises:
    ValueError: a choice in the config that does not exist.

  Source: arXiv:2006.04388; mmdetection 3.x gfl_head.py, atss_head.py, fcos_head.py.
  What guidance means is not said in the paper beyond "weighting": here the quality
  multiplies the class loss of the positive at its class, with target 1, and N stays.
  """
  loss, sums = loss_and_sums(predictions, batch, points, config)
  return loss, scalars.summary(sums)


def loss_and_sums(
  predictions: Predictions,
  batch: Mapping[str, Any],
  points: Points,
  config,
  *,
  normalizers: Normalizers | None = None,
  axis_name: str | None = None,
) -> tuple[Scalar, dict[str, Scalar]]:
  """`detection_loss` of one part of a batch.

  Args:
    predictions: as in `detection_loss`, of this part.
    batch: as in `detection_loss`, of this part.
    points: as in `detection_loss`.
    config: as in `detection_loss`.
    normalizers: N and W of the whole batch, if they are known (gradient accumulation);
      by default those of this part, summed over `axis_name`.
    axis_name: the mapped axis of devices, if each has a part.

  Returns:
    This part's share of the loss, and sums. Shares, their gradients and sums add up
    over all parts to those of the whole batch.
  """
  targets = make_targets(predictions, batch, points, config)
  if normalizers is None:
    normalizers = _normalizers(targets)
    if axis_name:
      normalizers = Normalizers(*jax.lax.psum(tuple(normalizers), axis_name))
  weight_sum = jnp.maximum(normalizers.weight_sum, config.box_loss.min_weight_sum)

  class_sum = _class_term(predictions.class_logits, targets, config)
  box_sum, edge_sum = _box_terms(targets, config)
  sums = {
    'loss_class': config.class_loss.weight * class_sum / normalizers.class_divisor,
    'loss_box': config.box_loss.weight * box_sum / weight_sum,
    'loss_edge': config.edge_loss.weight * edge_sum / weight_sum,
  }
  score = SCORES[config.score.kind]
  if score.use == 'branch':
    quality_sum = _quality_term(predictions.quality_logits, targets, score.quality)
    scale = config.score.weight / normalizers.class_divisor
    sums['loss_quality'] = scale * quality_sum
  loss = sum(sums.values(), start=jnp.zeros((), jnp.float32))
  sums |= {'loss': loss} | scalars.counts(targets, batch, config.box)
  return loss, {k: jnp.asarray(v, jnp.float32) for k, v in sums.items()}


def local_normalizers(
  predictions: Predictions, batch: Mapping[str, Any], points: Points, config
) -> Normalizers:
  """This part's share of the divisors; shares add up over devices and parts."""
  return _normalizers(make_targets(predictions, batch, points, config))


def _normalizers(targets) -> Normalizers:
  if targets.heatmap is None:
    per_image = (targets.matched >= 0).sum(axis=1)
  else:
    per_image = (targets.heatmap == 1).sum(axis=(1, 2))
  class_divisor = jnp.maximum(per_image, 1).sum().astype(jnp.float32)
  return Normalizers(class_divisor, targets.weights.sum())


def _class_term(logits, targets, config):
  """Sum of the class loss over all anchors that are not ignored."""
  loss = class_function(config.class_loss)
  trained = targets.matched != assignment.IGNORED
  if targets.heatmap is not None:
    return jnp.where(trained[..., None], loss(logits, targets.heatmap), 0.0).sum()
  score = SCORES[config.score.kind]
  ones = jnp.ones_like(targets.weights)
  target = targets.qualities[score.quality] if score.use == 'target' else ones
  weight = targets.qualities[score.quality] if score.use == 'weight' else ones
  rows, classes = targets.positives.rows, targets.positives.classes
  return class_loss_sum(loss, logits, trained, rows, classes, target, weight)


def _quality_term(quality_logits, targets, quality):
  """Sum over the positives of the quality branch's cross-entropy."""
  logits = rows_of(quality_logits, targets.positives)[:, 0]
  per_row = losses.binary_cross_entropy(logits, targets.qualities[quality])
  return jnp.where(targets.positives.used, per_row, 0.0).sum()


def _box_terms(targets, config):
  """Weighted sums over the positives of box and edge loss."""
  box_loss = choose(BOX_LOSSES, config.box_loss.kind, 'box_loss.kind')
  edge_loss = choose(EDGE_LOSSES, config.edge_loss.kind, 'edge_loss.kind')
  per_box = box_loss(targets.decoded, targets.positives.boxes)
  per_side = edge_loss.function(targets.outputs, targets.distances, config.box)
  edge_sum = (targets.weights * per_side.mean(axis=-1)).sum()
  return (targets.weights * per_box).sum(), edge_sum
