"""GFL's losses in their usual dense form, for comparison with the objective.

As most detectors write them: one-hot targets as large as the logits, softmax and
log_softmax of every side of every anchor, gathers by bin, and masks. The numbers are
the same.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from gfl_jax.models import Predictions
from gfl_jax.ops import assignment, points
from gfl_jax.ops import boxes as box_ops
from gfl_jax.training.targets import assign

MARGIN = 0.1  # bins between the largest target and the last bin


def dense_loss(
  predictions: Predictions, batch: Mapping[str, Any], anchors: points.Points, config
) -> Float[Array, '']:
  """The total of `objective.detection_loss`, for the recipe's five choices.

  Args: as there; the bins must be 0, 1, ... strides.
  """
  matched, _ = assign(batch, anchors, config)
  positive = matched >= 0
  take = jax.vmap(lambda values, index: values[index])
  strides = jnp.asarray(anchors.strides)[None, :, None]
  boxes = take(jnp.asarray(batch['boxes']), jnp.maximum(matched, 0)) / strides
  labels = take(jnp.asarray(batch['labels']), jnp.maximum(matched, 0))
  centers = jnp.broadcast_to(
    jnp.asarray(anchors.centers)[None] / strides, (*matched.shape, 2)
  )

  bins = jnp.arange(config.box.num_bins, dtype=jnp.float32)
  distances = jax.nn.softmax(predictions.box_logits) @ bins
  decoded = box_ops.distances_to_boxes(centers, distances)
  iou = jax.lax.stop_gradient(box_ops.iou(decoded, boxes))
  scores = jax.nn.sigmoid(predictions.class_logits)
  weights = jnp.where(positive, jax.lax.stop_gradient(scores.max(-1)), 0.0)

  one_hot = jax.nn.one_hot(labels, config.model.num_classes)
  quality = jnp.where(positive, iou, 0.0)[..., None] * one_hot
  cross_entropy = optax.sigmoid_binary_cross_entropy(predictions.class_logits, quality)
  class_loss = jnp.abs(quality - scores) ** config.class_loss.beta * cross_entropy
  class_sum = jnp.where(
    (matched != assignment.IGNORED)[..., None], class_loss, 0.0
  ).sum()

  box_loss = 1 - box_ops.giou(decoded, boxes)
  box_sum = (weights * jnp.where(positive, box_loss, 0.0)).sum()

  targets = box_ops.boxes_to_distances(centers, boxes)
  targets = jnp.clip(targets, 0, config.box.num_bins - 1 - MARGIN)
  left = jnp.floor(targets).astype(jnp.int32)
  log_probabilities = jax.nn.log_softmax(predictions.box_logits)
  at = lambda bin: jnp.take_along_axis(log_probabilities, bin[..., None], -1)[..., 0]
  edge_loss = -((left + 1 - targets) * at(left) + (targets - left) * at(left + 1))
  edge_sum = (weights * edge_loss.mean(-1)).sum()

  num_positives = jnp.maximum(positive.sum(axis=1), 1).sum()
  weight_sum = jnp.maximum(weights.sum(), config.box_loss.min_weight_sum)
  return (
    config.class_loss.weight * class_sum / num_positives
    + config.box_loss.weight * box_sum / weight_sum
    + config.edge_loss.weight * edge_sum / weight_sum
  )
