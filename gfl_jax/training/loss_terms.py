"""The loss terms: the functions that a config's kinds name.

Each kind is a line in one of these tables. objective.py sums and divides.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from gfl_jax.config import choose
from gfl_jax.errors import UserError
from gfl_jax.models.representations import REPRESENTATIONS, bin_grid
from gfl_jax.models.scores import SCORES
from gfl_jax.ops import assignment, boxes, distributions, losses
from gfl_jax.ops import points as point_ops


class ClassLoss(NamedTuple):
  """One kind of class loss.

  Attributes:
    function: element-wise, of (logits, targets) and the parameters by name.
    parameters: fields of `config.class_loss` that it takes.
    targets: 'hard' (0 or 1), 'soft' (any quality) or 'heatmap' (Gaussians around the
      centers of the boxes, independent of the predictions).
  """

  function: Callable[..., Array]
  parameters: tuple[str, ...]
  targets: str


class EdgeLoss(NamedTuple):
  """One kind of loss for single box sides.

  Attributes:
    function: of (outputs [K, 4, n], target distances [K, 4] in strides, config.box),
      one number for each side [K, 4].
    boxes: the kinds of box that it applies to.
  """

  function: Callable[[Array, Array, Any], Array]
  boxes: tuple[str, ...]


def _distribution_focal(outputs, targets, box_config):
  grid = bin_grid(box_config)
  inside = distributions.clamp_targets(targets, grid)
  return losses.distribution_focal_loss(outputs, inside, grid)


def _of_gaussian(loss):
  def per_side(outputs, targets, box_config):
    mean = REPRESENTATIONS['gaussian'].distance(outputs, box_config)
    return loss(mean, outputs[..., 1], targets)

  return per_side


# Adding a choice is adding a line.
CLASS_LOSSES = {
  'focal': ClassLoss(losses.focal_loss, ('alpha', 'gamma'), 'hard'),
  'quality_focal': ClassLoss(losses.quality_focal_loss, ('beta',), 'soft'),
  'varifocal': ClassLoss(losses.varifocal_loss, ('alpha', 'gamma'), 'soft'),
  'gaussian_focal': ClassLoss(
    losses.gaussian_focal_loss, ('alpha', 'gamma'), 'heatmap'
  ),
}
BOX_LOSSES = {'giou': losses.giou_loss, 'iou': losses.iou_loss}
EDGE_LOSSES = {
  'none': EdgeLoss(
    lambda outputs, targets, box_config: jnp.zeros_like(targets), tuple(REPRESENTATIONS)
  ),
  'distribution_focal': EdgeLoss(_distribution_focal, ('general',)),
  'gaussian_nll': EdgeLoss(_of_gaussian(losses.gaussian_nll_loss), ('gaussian',)),
  'kl': EdgeLoss(_of_gaussian(losses.kl_box_loss), ('gaussian',)),
}
# Weight of a positive in the box and edge terms; no gradient flows through it.
BOX_WEIGHTS = {
  'class_score': lambda class_logits, qualities: jax.nn.sigmoid(
    class_logits.max(axis=-1)
  ),
  'centerness': lambda class_logits, qualities: qualities['centerness'],
  'iou': lambda class_logits, qualities: qualities['iou'],
  'uniform': lambda class_logits, qualities: jnp.ones_like(qualities['iou']),
}
ASSIGNERS = {
  'atss': lambda config: functools.partial(assignment.atss, top_k=config.top_k),
  'fcos': lambda config: functools.partial(
    assignment.fcos,
    center_radius=config.center_radius,
    regress_range=config.regress_range,
  ),
  'max_iou': lambda config: functools.partial(
    assignment.max_iou,
    positive_iou=config.positive_iou,
    negative_iou=config.negative_iou,
  ),
}


def class_function(class_loss_config) -> Callable[..., Array]:
  """A config's class loss: (logits, targets) -> losses, element-wise."""
  kind = choose(CLASS_LOSSES, class_loss_config.kind, 'class_loss.kind')
  parameters = {name: class_loss_config[name] for name in kind.parameters}
  return functools.partial(kind.function, **parameters)


def check_choices(config) -> None:
  """Raises a ValueError for a choice that does not exist or does not fit another."""
  assigner = choose(ASSIGNERS, config.assignment.kind, 'assignment.kind')
  score = choose(SCORES, config.score.kind, 'score.kind')
  class_loss = choose(CLASS_LOSSES, config.class_loss.kind, 'class_loss.kind')
  choose(BOX_LOSSES, config.box_loss.kind, 'box_loss.kind')
  choose(BOX_WEIGHTS, config.box_loss.weighting, 'box_loss.weighting')
  edge_loss = choose(EDGE_LOSSES, config.edge_loss.kind, 'edge_loss.kind')
  # Grid, assigner and loss raise their own errors for numbers out of range.
  if config.box.kind == 'general':
    bin_grid(config.box)
  # Traced only: nothing is compiled or run.
  assigner = assigner(config.assignment)
  array = lambda *shape, dtype=jnp.float32: jax.ShapeDtypeStruct(shape, dtype)
  on_points = functools.partial(assigner, points=point_ops.make_points((8, 8), (8,)))
  jax.eval_shape(on_points, array(1, 4), array(1, dtype=jnp.bool_))
  jax.eval_shape(class_function(config.class_loss), array(1), array(1))
  if class_loss.targets == 'heatmap':
    radius = functools.partial(
      boxes.corner_radius, min_overlap=config.class_loss.min_overlap
    )
    jax.eval_shape(radius, array(1, 2))

  pair = f'class_loss.kind={config.class_loss.kind!r}, score.kind={config.score.kind!r}'
  if score.use == 'target' and class_loss.targets != 'soft':
    soft = sorted(k for k, v in CLASS_LOSSES.items() if v.targets == 'soft')
    raise UserError(
      f'{pair}: this score needs a class loss with soft labels, one of {soft}'
    )
  if score.use == 'weight' and class_loss.targets == 'heatmap':
    raise UserError(
      f'{pair}: a heatmap has no class loss of single positives to weight'
    )
  if config.box.kind not in edge_loss.boxes:
    raise UserError(
      f'edge_loss.kind={config.edge_loss.kind!r}, box.kind={config.box.kind!r}: this'
      f' loss needs a box of kind {" or ".join(edge_loss.boxes)}'
    )
