"""The numbers that are logged beside the loss: summed over parts, then named."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from gfl_jax.models.representations import bin_grid
from gfl_jax.ops import distributions
from gfl_jax.training.targets import Targets


def counts(targets: Targets, batch: Mapping[str, Any], box_config) -> dict[str, Any]:
  """Counts of one part of a batch; they add up over its parts.

  Args:
    targets: of the part.
    batch: as in `objective.detection_loss`.
    box_config: `config.box`.
  """
  sums = {
    'boxes': batch['valid'].sum(),
    'positives': targets.positives.used.sum(),
    'clamped_targets': _num_clamped(targets, box_config),
    'dropped_positives': targets.num_dropped,
    'dropped_boxes': batch['dropped_boxes'].sum() if 'dropped_boxes' in batch else 0,
  }
  for name, quality in targets.qualities.items():
    sums[f'positive_{name}'] = quality.sum()
    sums[f'positive_{name}_squared'] = jnp.square(quality).sum()
  return sums


def summary(sums: Mapping[str, Float[Array, '']]) -> dict[str, Float[Array, '']]:
  """Named scalars of a whole batch, from the loss terms and `counts` of all its parts.

  `loss` and its terms; `positives_per_box`; `positive_iou` and `positive_centerness`,
  means over the positives of the two qualities, and `..._std`, their standard
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


def _num_clamped(targets, box_config):
  """Sides of positives beyond the bin grid; a box without bins has none."""
  if box_config.kind != 'general':
    return 0
  inside = distributions.clamp_targets(targets.distances, bin_grid(box_config))
  return ((targets.distances != inside) & targets.positives.used[:, None]).sum()
