"""The training objective: the only place that divides a loss by anything.

Every sum here is taken over the whole batch of all devices before it is used as a
divisor, so a batch gives the same loss and the same gradients however it is split.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from gfl_jax.choices import choose
from gfl_jax.models.detector import Predictions
from gfl_jax.ops import assignment, boxes, distributions, losses
from gfl_jax.ops import points as point_ops

# Adding a choice is adding a line. A class loss takes (logits, quality) of one shape,
# element-wise; quality is 0 wherever the anchor is not a positive of the class.
CLASS_LOSSES = {
  'quality_focal': lambda config: (
    lambda logits, quality: losses.quality_focal_loss(logits, quality, beta=config.beta)
  ),
}
BOX_LOSSES = {'giou': losses.giou_loss}
EDGE_LOSSES = {'distribution_focal': losses.distribution_focal_loss}
ASSIGNERS = {
  'atss': lambda config: (
    lambda *args, **kwargs: assignment.atss(*args, top_k=config.top_k, **kwargs)
  ),
}


def check_choices(config) -> None:
  """Raises a ValueError if the config names a choice that does not exist."""
  choose(ASSIGNERS, config.assignment.kind, 'assignment.kind')
  choose(CLASS_LOSSES, config.class_loss.kind, 'class_loss.kind')
  choose(BOX_LOSSES, config.box_loss.kind, 'box_loss.kind')
  choose(EDGE_LOSSES, config.edge_loss.kind, 'edge_loss.kind')


class Normalizers(NamedTuple):
  """The two divisors, summed over all images of all devices.

  Attributes:
    num_positives: sum over images of max(number of positive anchors, 1).
    weight_sum: sum over positive anchors of their box weight.
  """

  num_positives: Float[Array, '']
  weight_sum: Float[Array, '']


class Positives(NamedTuple):
  """The positive anchors of a batch, gathered into a fixed number of K rows.

  Attributes:
    rows: [K] anchor in the flattened [B * A] list; B * A in unused rows.
    used: [K] whether the row holds a positive.
    labels: [K] class of the matched box.
    centers: [K, 2] anchor centre (x, y), in strides.
    boxes: [K, 4] matched box xyxy, in strides.
  """

  rows: Int[Array, ' k']
  used: Bool[Array, ' k']
  labels: Int[Array, ' k']
  centers: Float[Array, 'k 2']
  boxes: Float[Array, 'k 4']


def assign(
  batch: Mapping[str, Any], points: point_ops.Points, config
) -> tuple[Int[Array, 'b a'], Int[Array, '']]:
  """Matches every anchor of a batch.

  An anchor is ignored if it lies beyond its own image (padded to a multiple of 32), or
  if it is a positive beyond `box_loss.max_positives_per_image`, in anchor order.

  Returns:
    matched [B, A]: index of the box, -1 background, -2 ignored; and the number of
    positives beyond the limit.
  """
  assigner = choose(ASSIGNERS, config.assignment.kind, 'assignment.kind')
  assigner = assigner(config.assignment)
  on_image = point_ops.point_validity(points, batch['image_sizes'])

  def one_image(image_boxes, valid, point_valid):
    return assigner(image_boxes, valid, points, point_valid=point_valid).matched

  matched = jax.vmap(one_image)(batch['boxes'], batch['valid'], on_image)
  rank = jnp.cumsum(matched >= 0, axis=1)
  dropped = (matched >= 0) & (rank > config.box_loss.max_positives_per_image)
  return jnp.where(dropped, assignment.IGNORED, matched), dropped.sum()


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
    labels=jnp.asarray(batch['labels'])[image, box_index],
    centers=jnp.asarray(points.centers)[anchor] / strides,
    boxes=jnp.where(
      used[:, None],
      jnp.asarray(batch['boxes'])[image, box_index] / strides,
      jnp.array([0.0, 0.0, 1.0, 1.0]),
    ),
  )


def box_weights(
  class_logits: Float[Array, 'k c'], used: Bool[Array, ' k']
) -> Float[Array, ' k']:
  """Weight of a positive in the box terms: its largest class score, no gradient."""
  scores = jax.nn.sigmoid(class_logits.max(axis=-1))
  return jax.lax.stop_gradient(jnp.where(used, scores, 0.0))


def local_normalizers(
  predictions: Predictions,
  batch: Mapping[str, Any],
  points: point_ops.Points,
  config,
) -> Normalizers:
  """This batch's own part of the divisors, to be added up over devices or parts."""
  matched, _ = assign(batch, points, config)
  positives = gather_positives(matched, batch, points, _capacity(matched, config))
  return _normalizers(
    matched,
    box_weights(_rows(predictions.class_logits, positives), positives.used),
  )


def detection_loss(
  predictions: Predictions,
  batch: Mapping[str, Any],
  points: point_ops.Points,
  config,
) -> tuple[Float[Array, ''], dict[str, Float[Array, '']]]:
  """Class, box and edge loss of a whole batch on one device.

  With w = the detached largest class score of a positive, everything in strides:
  ```
  class = sum over anchors on an image and classes of QFL(logit, IoU or 0) / N
  box   = sum over positives of w * (1 - GIoU(decoded, matched)) / max(W, floor)
  edge  = sum over positives of w * mean over sides of DFL / max(W, floor)
  N = sum over images of max(positives, 1);  W = sum over positives of w
  ```
  each times its weight in the config; the IoU target carries no gradient, the
  decoded box is clamped neither to the grid nor to the image, DFL's target is clamped
  to just inside the grid. Without any box in the batch, box and edge are exactly 0.

  Args:
    predictions: class_logits [B, A, C], box_logits [B, A, 4, n].
    batch: `boxes` [B, G, 4] pixels, `labels` [B, G], `valid` [B, G] and `image_sizes`
      [B, 2] (height, width before padding); `dropped_boxes` [B] if present is counted.
    points: of the canvas, A in all.
    config: an experiment's config (assignment, class_loss, box_loss, edge_loss, box).

  Returns:
    The loss and a dict of named scalars (see `summary`).

  Raises:
    ValueError: a choice in the config that does not exist.

  Source: arXiv:2006.04388; mmdetection 3.x gfl_head.py.
  """
  loss, sums = loss_and_sums(predictions, batch, points, config)
  return loss, summary(sums)


def loss_and_sums(
  predictions: Predictions,
  batch: Mapping[str, Any],
  points: point_ops.Points,
  config,
  *,
  normalizers: Normalizers | None = None,
  axis_name: str | None = None,
) -> tuple[Float[Array, ''], dict[str, Float[Array, '']]]:
  """`detection_loss` of one part of a batch.

  Args:
    predictions: as in `detection_loss`, of this part.
    batch: as in `detection_loss`, of this part.
    points: as in `detection_loss`.
    config: as in `detection_loss`.
    normalizers: N and W of the whole batch, if known already (gradient accumulation);
      by default those of this part, summed over `axis_name`.
    axis_name: the mapped axis of devices, if each has a part.

  Returns:
    This part's share of the loss, and sums: over all parts, shares (and so their
    gradients) and sums add up to those of the whole batch.
  """
  matched, num_dropped = assign(batch, points, config)
  positives = gather_positives(matched, batch, points, _capacity(matched, config))
  weights = box_weights(_rows(predictions.class_logits, positives), positives.used)
  if normalizers is None:
    normalizers = _normalizers(matched, weights)
    if axis_name:
      normalizers = Normalizers(*jax.lax.psum(tuple(normalizers), axis_name))
  weight_sum = jnp.maximum(normalizers.weight_sum, config.box_loss.min_weight_sum)

  box_sum, edge_sum, iou, clamped = _box_terms(
    _rows(predictions.box_logits, positives), positives, weights, config
  )
  trained = matched != assignment.IGNORED
  class_loss = choose(CLASS_LOSSES, config.class_loss.kind, 'class_loss.kind')
  class_sum = _class_sum(
    class_loss(config.class_loss), predictions.class_logits, positives, iou, trained
  )

  sums = {
    'loss_class': config.class_loss.weight * class_sum / normalizers.num_positives,
    'loss_box': config.box_loss.weight * box_sum / weight_sum,
    'loss_edge': config.edge_loss.weight * edge_sum / weight_sum,
  }
  loss = sums['loss_class'] + sums['loss_box'] + sums['loss_edge']
  num_used = positives.used.sum()
  sums |= {
    'loss': loss,
    'boxes': batch['valid'].sum(),
    'positives': num_used,
    'positive_iou': iou.sum(),
    'clamped_targets': clamped,
    'dropped_positives': num_dropped,
    'dropped_boxes': batch['dropped_boxes'].sum() if 'dropped_boxes' in batch else 0,
  }
  return loss, {k: jnp.asarray(v, jnp.float32) for k, v in sums.items()}


def summary(sums: Mapping[str, Float[Array, '']]) -> dict[str, Float[Array, '']]:
  """Named scalars of a whole batch, from sums over all its parts.

  `loss` and its terms; `positives_per_box`; `positive_iou`, mean IoU of the positives'
  decoded boxes; `clamped_targets`, share of their sides beyond the bin grid;
  `dropped_positives` and `dropped_boxes`, beyond the fixed capacities.
  """
  positives = jnp.maximum(sums['positives'], 1)
  kept = ('loss', 'loss_class', 'loss_box', 'loss_edge')
  return {name: sums[name] for name in kept} | {
    'positives_per_box': sums['positives'] / jnp.maximum(sums['boxes'], 1),
    'positive_iou': sums['positive_iou'] / positives,
    'clamped_targets': sums['clamped_targets'] / (4 * positives),
    'dropped_positives': sums['dropped_positives'],
    'dropped_boxes': sums['dropped_boxes'],
  }


def _capacity(matched, config) -> int:
  num_images, num_anchors = matched.shape
  return num_images * min(num_anchors, config.box_loss.max_positives_per_image)


def _rows(per_anchor, positives):
  """Rows of [B, A, ...] at the positives, zero in unused ones: [K, ...]."""
  flat = per_anchor.reshape(-1, *per_anchor.shape[2:])
  return flat.at[positives.rows].get(mode='fill', fill_value=0)


def _normalizers(matched, weights) -> Normalizers:
  per_image = (matched >= 0).sum(axis=1)
  return Normalizers(
    num_positives=jnp.maximum(per_image, 1).sum().astype(jnp.float32),
    weight_sum=weights.sum(),
  )


def _box_terms(box_logits, positives, weights, config):
  """Weighted sums of box and edge loss; IoU [K], without gradient; clamped sides."""
  grid = distributions.BinGrid(config.box.start, config.box.stop, config.box.num_bins)
  distances = distributions.expectation(box_logits, grid)
  decoded = boxes.distances_to_boxes(positives.centers, distances)
  box_loss = choose(BOX_LOSSES, config.box_loss.kind, 'box_loss.kind')
  box_sum = (weights * box_loss(decoded, positives.boxes)).sum()

  targets = boxes.boxes_to_distances(positives.centers, positives.boxes)
  inside = distributions.clamp_targets(targets, grid)
  edge_loss = choose(EDGE_LOSSES, config.edge_loss.kind, 'edge_loss.kind')
  per_side = edge_loss(box_logits, inside, grid)
  edge_sum = (weights * per_side.mean(axis=-1)).sum()

  iou = jax.lax.stop_gradient(boxes.iou(decoded, positives.boxes))
  iou = jnp.where(positives.used, iou, 0.0)
  clamped = ((targets != inside) & positives.used[:, None]).sum()
  return box_sum, edge_sum, iou, clamped


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _class_sum(class_loss: Callable, logits, positives, quality, trained):
  """Sum of the class loss over all anchors marked as trained.

  First as if every anchor were background, in one pass over the logits with a target
  that is a constant; then the few entries that are positive are put right. A dense
  target would cost a second array of the logits' size.

  The gradient is a second pass that computes all of it again: kept from the first, its
  parts would be four arrays of the logits' size, now it is written in its final place.
  """
  background = class_loss(logits, jnp.zeros_like(logits)).sum(axis=-1)
  at_class = _at_class(logits, positives)
  as_background = class_loss(at_class, jnp.zeros_like(at_class))
  correction = class_loss(at_class, quality) - as_background
  correction = jnp.where(positives.used, correction, 0.0)
  return jnp.where(trained, background, 0.0).sum() + correction.sum()


def _class_sum_forward(class_loss, *arguments):
  return _class_sum(class_loss, *arguments), arguments


def _class_sum_backward(class_loss, arguments, cotangent):
  logits, positives, quality, trained = arguments
  # Without the barrier the compiler would find what both passes share, and keep it.
  logits, cotangent = jax.lax.optimization_barrier((logits, cotangent))

  def slope(logits, quality, weights):
    _, pull = jax.vjp(lambda x: class_loss(x, quality), logits)
    return pull(jnp.broadcast_to(weights, logits.shape))[0]

  weights = jnp.where(trained, cotangent, 0.0)[..., None]
  gradient = slope(logits, jnp.zeros_like(logits), weights)
  at_class = slope(_at_class(logits, positives), quality, cotangent)
  where = gradient.reshape(-1, gradient.shape[-1]).at[positives.rows, positives.labels]
  return where.set(at_class, mode='drop').reshape(logits.shape), None, None, None


_class_sum.defvjp(_class_sum_forward, _class_sum_backward)


def _at_class(logits, positives):
  """[K] logit of each positive at the class of its box; 0 in unused rows."""
  flat = logits.reshape(-1, logits.shape[-1])
  return flat.at[positives.rows, positives.labels].get(mode='fill', fill_value=0)
