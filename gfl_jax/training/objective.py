"""The training objective: the only place that divides a loss by anything.

Every sum here is taken over the whole batch of all devices before it is used as a
divisor, so a batch gives the same loss and the same gradients however it is split.
"""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from gfl_jax.config import choose
from gfl_jax.models.detector import Predictions
from gfl_jax.models.representations import bin_grid
from gfl_jax.models.scores import SCORES
from gfl_jax.ops import assignment, distributions, losses
from gfl_jax.ops import points as point_ops
from gfl_jax.training import loss_terms
from gfl_jax.training.targets import make_targets, rows_of


class Normalizers(NamedTuple):
  """The two divisors, summed over all images of all devices.

  Attributes:
    class_divisor: N, of the class and the quality term: sum over images of max(number
      of positive anchors, 1); with a heatmap, of max(number of its peaks, 1).
    weight_sum: W, of the box and the edge term: sum over positive anchors of their box
      weight.
  """

  class_divisor: Float[Array, '']
  weight_sum: Float[Array, '']


def local_normalizers(
  predictions: Predictions,
  batch: Mapping[str, Any],
  points: point_ops.Points,
  config,
) -> Normalizers:
  """This batch's own part of the divisors, to be added up over devices or parts."""
  return _normalizers(make_targets(predictions, batch, points, config))


def detection_loss(
  predictions: Predictions,
  batch: Mapping[str, Any],
  points: point_ops.Points,
  config,
) -> tuple[Float[Array, ''], dict[str, Float[Array, '']]]:
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
    config: an experiment's config (assignment, score, class_loss, box, box_loss,
      edge_loss).

  Returns:
    The loss and a dict of named scalars (see `summary`).

  Raises:
    ValueError: a choice in the config that does not exist.

  Source: arXiv:2006.04388; mmdetection 3.x gfl_head.py, atss_head.py, fcos_head.py.
  What guidance means is not said in the paper beyond "weighting": here the quality
  multiplies the class loss of the positive at its class, with target 1, and N stays.
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
  match = make_targets(predictions, batch, points, config)
  if normalizers is None:
    normalizers = _normalizers(match)
    if axis_name:
      normalizers = Normalizers(*jax.lax.psum(tuple(normalizers), axis_name))
  weight_sum = jnp.maximum(normalizers.weight_sum, config.box_loss.min_weight_sum)

  class_sum = _class_term(predictions.class_logits, match, config)
  box_sum, edge_sum = _box_terms(match, config)
  sums = {
    'loss_class': config.class_loss.weight * class_sum / normalizers.class_divisor,
    'loss_box': config.box_loss.weight * box_sum / weight_sum,
    'loss_edge': config.edge_loss.weight * edge_sum / weight_sum,
  }
  score = SCORES[config.score.kind]
  if score.use == 'branch':
    quality_sum = _quality_term(predictions.quality_logits, match, score.label)
    scale = config.score.weight / normalizers.class_divisor
    sums['loss_quality'] = scale * quality_sum
  loss = sum(sums.values(), start=jnp.zeros((), jnp.float32))
  sums |= {
    'loss': loss,
    'boxes': batch['valid'].sum(),
    'positives': match.positives.used.sum(),
    'clamped_targets': _num_clamped(match, config.box),
    'dropped_positives': match.num_dropped,
    'dropped_boxes': batch['dropped_boxes'].sum() if 'dropped_boxes' in batch else 0,
  }
  for name, label in match.labels.items():
    sums[f'positive_{name}'] = label.sum()
    sums[f'positive_{name}_squared'] = jnp.square(label).sum()
  return loss, {k: jnp.asarray(v, jnp.float32) for k, v in sums.items()}


def summary(sums: Mapping[str, Float[Array, '']]) -> dict[str, Float[Array, '']]:
  """Named scalars of a whole batch, from sums over all its parts.

  `loss` and its terms; `positives_per_box`; `positive_iou` and `positive_centerness`,
  means over the positives of the two labels of quality, and `..._std`, their standard
  deviations (the paper's figure 12); `clamped_targets`, share of the positives' sides
  beyond the bin grid; `dropped_positives` and `dropped_boxes`, beyond the fixed
  capacities.
  """
  positives = jnp.maximum(sums['positives'], 1)
  scalars = {name: value for name, value in sums.items() if name.startswith('loss')}
  for name in ('positive_iou', 'positive_centerness'):
    mean = sums[name] / positives
    variance = sums[f'{name}_squared'] / positives - jnp.square(mean)
    scalars[name] = mean
    scalars[f'{name}_std'] = jnp.sqrt(jnp.maximum(variance, 0.0))
  return scalars | {
    'positives_per_box': sums['positives'] / jnp.maximum(sums['boxes'], 1),
    'clamped_targets': sums['clamped_targets'] / (4 * positives),
    'dropped_positives': sums['dropped_positives'],
    'dropped_boxes': sums['dropped_boxes'],
  }


def _normalizers(match) -> Normalizers:
  if match.heatmap is None:
    per_image = (match.matched >= 0).sum(axis=1)
  else:
    per_image = (match.heatmap == 1).sum(axis=(1, 2))
  return Normalizers(
    class_divisor=jnp.maximum(per_image, 1).sum().astype(jnp.float32),
    weight_sum=match.weights.sum(),
  )


def _class_term(logits, match, config):
  """Sum of the class loss over all anchors that are not ignored."""
  class_loss = choose(
    loss_terms.CLASS_LOSSES, config.class_loss.kind, 'class_loss.kind'
  )
  numbers = loss_terms.numbers_of(class_loss, config)
  trained = match.matched != assignment.IGNORED
  if match.heatmap is not None:
    per_entry = class_loss.function(logits, match.heatmap, **numbers)
    return jnp.where(trained[..., None], per_entry, 0.0).sum()
  score = SCORES[config.score.kind]
  ones = jnp.ones_like(match.weights)
  target = match.labels[score.label] if score.use == 'target' else ones
  weight = match.labels[score.label] if score.use == 'weight' else ones
  # Numbers of the config are part of the program; traced ones have to be arguments.
  traced = {k: v for k, v in numbers.items() if isinstance(v, jax.Array)}
  fixed = {k: v for k, v in numbers.items() if k not in traced}
  function = functools.partial(class_loss.function, **fixed)
  return _class_sum(function, traced, logits, match.positives, target, weight, trained)


def _quality_term(quality_logits, match, label):
  """Sum over the positives of the quality branch's cross-entropy."""
  logits = rows_of(quality_logits, match.positives)[:, 0]
  per_row = losses.binary_cross_entropy(logits, match.labels[label])
  return jnp.where(match.positives.used, per_row, 0.0).sum()


def _box_terms(match, config):
  """Weighted sums of box and edge loss."""
  box_loss = choose(loss_terms.BOX_LOSSES, config.box_loss.kind, 'box_loss.kind')
  per_box = box_loss(match.decoded, match.positives.boxes)
  edge_loss = choose(loss_terms.EDGE_LOSSES, config.edge_loss.kind, 'edge_loss.kind')
  per_side = edge_loss.function(match.outputs, match.distances, config.box)
  return (
    (match.weights * per_box).sum(),
    (match.weights * per_side.mean(axis=-1)).sum(),
  )


def _num_clamped(match, box_config):
  """Sides of positives beyond the bin grid; a box without bins has none."""
  if box_config.kind != 'general':
    return 0
  inside = distributions.clamp_targets(match.distances, bin_grid(box_config))
  return ((match.distances != inside) & match.positives.used[:, None]).sum()


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _class_sum(function, numbers, logits, positives, target, weight, trained):
  """Sum of a class loss whose targets are 0 but at the positives' own classes.

  First as if every anchor were background, in one pass over the logits with a target
  that is a constant; then the few entries that are positive are put right. A dense
  target would cost a second array of the logits' size.

  The gradient is a second pass that computes all of it again: kept from the first, its
  parts would be four arrays of the logits' size, now it is written in its final place.
  """
  loss = functools.partial(function, **numbers)
  background = loss(logits, jnp.zeros_like(logits)).sum(axis=-1)
  at_class = _at_class(logits, positives)
  as_background = loss(at_class, jnp.zeros_like(at_class))
  correction = weight * loss(at_class, target) - as_background
  correction = jnp.where(positives.used, correction, 0.0)
  return jnp.where(trained, background, 0.0).sum() + correction.sum()


def _class_sum_forward(function, *arguments):
  return _class_sum(function, *arguments), arguments


def _class_sum_backward(function, arguments, cotangent):
  numbers, logits, positives, target, weight, trained = arguments
  # Without the barrier the compiler would find what both passes share, and keep it.
  logits, cotangent = jax.lax.optimization_barrier((logits, cotangent))

  def slope(logits, target, weights):
    _, pull = jax.vjp(lambda x: function(x, target, **numbers), logits)
    return pull(jnp.broadcast_to(weights, logits.shape))[0]

  weights = jnp.where(trained, cotangent, 0.0)[..., None]
  gradient = slope(logits, jnp.zeros_like(logits), weights)
  at_class = slope(_at_class(logits, positives), target, cotangent * weight)
  where = gradient.reshape(-1, gradient.shape[-1]).at[positives.rows, positives.labels]
  gradient = where.set(at_class, mode='drop').reshape(logits.shape)
  return None, gradient, None, None, None, None


_class_sum.defvjp(_class_sum_forward, _class_sum_backward)


def _at_class(logits, positives):
  """[K] logit of each positive at the class of its box; 0 in unused rows."""
  flat = logits.reshape(-1, logits.shape[-1])
  return flat.at[positives.rows, positives.labels].get(mode='fill', fill_value=0)
