"""The targets of a batch: which anchor learns which box, and from what."""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from gfl_jax.config import choose
from gfl_jax.models.representations import REPRESENTATIONS
from gfl_jax.ops import assignment, boxes
from gfl_jax.ops import points as point_ops
from gfl_jax.ops.arrays import gather_rows
from gfl_jax.training.loss_terms import ASSIGNERS, BOX_WEIGHTS, CLASS_LOSSES


class Positives(NamedTuple):
  """The positive anchors of a batch, gathered into a fixed number of K rows.

  Attributes:
    rows: [K] anchor in the flattened [B * A] list; B * A in unused rows.
    used: [K] whether the row holds a positive.
    classes: [K] of the matched box.
    centers: [K, 2] anchor center (x, y), in strides.
    boxes: [K, 4] matched box xyxy, in strides.
  """

  rows: Int[Array, ' k']
  used: Bool[Array, ' k']
  classes: Int[Array, ' k']
  centers: Float[Array, 'k 2']
  boxes: Float[Array, 'k 4']


def assign(
  batch: Mapping[str, Any], points: point_ops.Points, config
) -> tuple[Int[Array, 'b a'], Int[Array, '']]:
  """Matches every anchor of a batch.

  An anchor is ignored if it lies beyond its own image (padded to a multiple of 32), or
  if it is a positive beyond the capacity of the batch, which is the number of images
  times `box_loss.max_positives_per_image`. Above the capacity, the boxes with the most
  anchors lose their anchors of the lowest IoU, one at a time, whatever the level.

  Args:
    batch: `boxes`, `valid` and `image_sizes` as in `objective.detection_loss`. With
      several devices or accumulation it is the part of one device and micro-batch.
    points: of the canvas.
    config: an experiment's config.

  Returns:
    matched [B, A]: index of the box, -1 background, -2 ignored; and the number of
    positives beyond the capacity.
  """
  assigner = choose(ASSIGNERS, config.assignment.kind, 'assignment.kind')
  assigner = assigner(config.assignment)
  on_image = point_ops.point_validity(points, batch['image_sizes'])

  def one_image(image_boxes, valid, point_valid):
    return assigner(image_boxes, valid, points, point_valid=point_valid).matched

  matched = jax.vmap(one_image)(batch['boxes'], batch['valid'], on_image)
  num_positives = (matched >= 0).sum()
  matched = _drop_worst(matched, _capacity(matched, config), batch, points)
  return matched, num_positives - (matched >= 0).sum()


def _drop_worst(
  matched: Int[Array, 'b a'],
  capacity: int,
  batch: Mapping[str, Any],
  points: point_ops.Points,
) -> Int[Array, 'b a']:
  """Ignores anchors until at most `capacity` are positive.

  Each round takes the anchor of the lowest IoU from every box that has the most
  anchors. A batch within its capacity, the usual case, costs one sum.
  """
  num_images, num_boxes = batch['valid'].shape
  image = jnp.arange(num_images, dtype=jnp.int32)[:, None]

  def drop_one(matched):
    positive, safe = matched >= 0, jnp.maximum(matched, 0)
    iou_of_image = lambda its_boxes: boxes.iou(points.anchors, its_boxes)
    iou = jax.vmap(iou_of_image)(jnp.asarray(batch['boxes'])[image, safe])
    box = jnp.where(positive, image * num_boxes + safe, num_images * num_boxes)
    empty = jnp.zeros(num_images * num_boxes + 1, jnp.float32)
    counts = empty.at[box].add(positive)
    worst = (empty + jnp.inf).at[box].min(iou)
    dropped = positive & (counts[box] == counts.max()) & (iou == worst[box])
    # Of anchors with an equal IoU one goes, or a box could lose all of them at once.
    number = jnp.where(dropped, jnp.arange(matched.shape[1], dtype=jnp.int32), -1)
    dropped &= number == jnp.full_like(counts, -1, jnp.int32).at[box].max(number)[box]
    return jnp.where(dropped, assignment.IGNORED, matched)

  return jax.lax.while_loop(
    lambda matched: (matched >= 0).sum() > capacity, drop_one, matched
  )


def gather_positives(
  matched: Int[Array, 'b a'],
  batch: Mapping[str, Any],
  points: point_ops.Points,
  capacity: int,
) -> Positives:
  """The positive anchors of a batch, at most `capacity`, in anchor order.

  Box and edge losses cost work for each row, and fewer than one anchor in a hundred
  is positive: the gathered form needs half the time and a third of the memory.
  """
  num_images, num_anchors = matched.shape
  num_rows = num_images * num_anchors
  flat = matched.reshape(-1)
  (rows,) = jnp.nonzero(flat >= 0, size=capacity, fill_value=num_rows)
  used = rows < num_rows
  safe_rows = jnp.where(used, rows, 0)
  image, anchor = safe_rows // num_anchors, safe_rows % num_anchors
  box_index = jnp.maximum(flat[safe_rows], 0)
  strides = jnp.asarray(points.strides)[anchor][:, None]
  # Unused rows get a harmless unit box, so that nothing there is inf or nan.
  return Positives(
    rows=rows,
    used=used,
    classes=jnp.asarray(batch['labels'])[image, box_index],
    centers=jnp.asarray(points.centers)[anchor] / strides,
    boxes=jnp.where(
      used[:, None],
      jnp.asarray(batch['boxes'])[image, box_index] / strides,
      jnp.array([0.0, 0.0, 1.0, 1.0], jnp.float32),
    ),
  )


class Targets(NamedTuple):
  """What the loss terms are computed from.

  Attributes:
    matched: [B, A] as from `assign`.
    num_dropped: positives beyond the capacity.
    positives: K rows.
    outputs: [K, 4, n] of the box sides.
    decoded: [K, 4] predicted boxes xyxy, in strides.
    distances: [K, 4] true distances, in strides.
    qualities: 'iou' and 'centerness', [K] each, no gradient; 0 in unused rows.
    weights: [K] in the box terms, no gradient; 0 in unused rows.
    heatmap: [B, A, C], if the class loss takes one.
  """

  matched: Array
  num_dropped: Array
  positives: Positives
  outputs: Array
  decoded: Array
  distances: Array
  qualities: dict[str, Array]
  weights: Array
  heatmap: Array | None


def make_targets(predictions, batch, points, config) -> Targets:
  """Assigns a batch's anchors; decodes and weights the positives."""
  matched, num_dropped = assign(batch, points, config)
  positives = gather_positives(matched, batch, points, _capacity(matched, config))
  outputs = rows_of(predictions.box_logits, positives)
  representation = choose(REPRESENTATIONS, config.box.kind, 'box.kind')
  decoded = boxes.distances_to_boxes(
    positives.centers, representation.distance(outputs, config.box)
  )
  distances = boxes.boxes_to_distances(positives.centers, positives.boxes)

  detached = lambda x: jax.lax.stop_gradient(jnp.where(positives.used, x, 0.0))
  qualities = {
    'iou': detached(boxes.iou(decoded, positives.boxes)),
    'centerness': detached(boxes.centerness(distances)),
  }
  weigh = choose(BOX_WEIGHTS, config.box_loss.weighting, 'box_loss.weighting')
  weights = weigh(rows_of(predictions.class_logits, positives), qualities)
  class_loss = choose(CLASS_LOSSES, config.class_loss.kind, 'class_loss.kind')
  heatmap = None
  if class_loss.targets == 'heatmap':
    num_classes = predictions.class_logits.shape[-1]
    heatmap = _heatmap(matched, batch, points, num_classes, config)
  weights = detached(weights)
  return Targets(
    matched,
    num_dropped,
    positives,
    outputs,
    decoded,
    distances,
    qualities,
    weights,
    heatmap,
  )


def _heatmap(matched, batch, points, num_classes, config):
  draw = functools.partial(
    assignment.center_heatmap,
    points=points,
    num_classes=num_classes,
    min_overlap=config.class_loss.min_overlap,
  )
  return jax.vmap(draw)(batch['boxes'], batch['labels'], batch['valid'], matched)


def rows_of(per_anchor, positives):
  """Rows of [B, A, ...] at the positives, zero in unused ones: [K, ...]."""
  flat = per_anchor.reshape(-1, *per_anchor.shape[2:])
  return gather_rows(flat, positives.rows, mode='fill', fill_value=0)


def _capacity(matched, config) -> int:
  num_images, num_anchors = matched.shape
  return num_images * min(num_anchors, config.box_loss.max_positives_per_image)
