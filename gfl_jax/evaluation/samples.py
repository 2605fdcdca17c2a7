"""A few images of an evaluation, with what the report draws on them."""

import math
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from flax import traverse_util

from gfl_jax.evaluation.decode import Detections
from gfl_jax.evaluation.diagnostic_rows import Sides
from gfl_jax.evaluation.side_distributions import bin_probabilities
from gfl_jax.models import canvas_points
from gfl_jax.models.representations import bin_grid

NUM_SAMPLES = 12  # images kept for the report
_CURVE_SIGMAS, _CURVE_POINTS = 4.0, 41  # of a normal distribution
_NARROWEST = 0.125  # strides; the std of narrower curves, which would be too tall


def choose_samples(ground_truth: Mapping, share: Collection[int]) -> set[int]:
  """Ids of up to `NUM_SAMPLES` images with boxes, spread evenly over a share of ids."""
  ids = sorted({a['image_id'] for a in ground_truth['annotations']} & set(share))
  chosen = np.linspace(0, len(ids) - 1, min(NUM_SAMPLES, len(ids))).round().astype(int)
  return {ids[i] for i in chosen}


def collect_samples(
  batch: Mapping[str, np.ndarray],
  found: Detections,
  sides: Sides,
  sample_ids: set[int],
  config: Any,
) -> list[dict]:
  """What the report draws of a batch's chosen images, in px of the resized image.

  The distribution of a side is `edge_heights` [n, 4, m] at `edge_positions` [n, 4, m]
  (x of left and right, y of top and bottom): the probabilities of the bins, the normal
  density, or, for Dirac, 1 at the predicted position (m = 1).
  """
  points = canvas_points(config, batch['images'].shape[1:3])
  samples = []
  for i, image_id in enumerate(batch['image_ids'].tolist()):
    if image_id not in sample_ids:
      continue
    height, width = batch['image_sizes'][i]
    scale = np.tile(batch['scales'][i], 2)
    real, kept = batch['valid'][i], found.valid[i]
    assert found.anchor_index is not None  # `make_predict` returns it
    anchors = found.anchor_index[i][kept]
    strides, centers = points.strides[anchors], points.centers[anchors]
    edge_std = found.edge_std[i][kept] * scale
    distances, heights = _distribution(
      sides.distance[i][kept],
      edge_std / strides[:, None],
      sides.outputs[i][kept],
      config.box,
    )
    outward = np.array([-1, -1, 1, 1])[:, None] * strides[:, None, None]
    samples.append(
      {
        'image_id': image_id,
        # A view would keep the memory of the whole batch.
        'image': batch['images'][i, :height, :width].copy(),
        'true_boxes': batch['boxes'][i][real],
        'true_classes': batch['labels'][i][real],
        'boxes': found.boxes[i][kept] * scale,
        'scores': found.scores[i][kept],
        'classes': found.classes[i][kept],
        'edge_std': edge_std,
        'edge_positions': np.tile(centers, 2)[..., None] + outward * distances,
        'edge_heights': heights,
        'strides': strides,
      }
    )
  return samples


def sample_arrays(samples: list[dict], class_names: list[str]) -> dict[str, Any]:
  """What samples.npz holds: 'NUMBER/FIELD' arrays, `num_samples`, `class_names`."""
  numbered = {str(number): sample for number, sample in enumerate(samples)}
  return {
    **traverse_util.flatten_dict(numbered, sep='/'),
    'num_samples': len(samples),
    'class_names': np.array(class_names, np.str_),
  }


def _distribution(distance, std, outputs, box_config) -> tuple[np.ndarray, np.ndarray]:
  """What is drawn of sides [n, 4]: distances in strides and heights, [n, 4, m].

  Distance and std are in strides, the outputs [n, 4, k] those of the head.
  """
  if box_config.kind == 'dirac':
    return distance[..., None], np.ones_like(distance)[..., None]
  if box_config.kind == 'gaussian':
    std = np.maximum(std, _NARROWEST)[..., None]
    z = np.linspace(-_CURVE_SIGMAS, _CURVE_SIGMAS, _CURVE_POINTS)
    heights = np.exp(-0.5 * np.square(z)) / (std * math.sqrt(2 * math.pi))
    return distance[..., None] + std * z, heights
  positions = np.broadcast_to(bin_grid(box_config).values, outputs.shape)
  return positions, bin_probabilities(outputs).astype(np.float32)
