"""Flax modules of the detector, and the functions that build it from a config."""

from gfl_jax.models.detector import (
  Detector,
  Predictions,
  build_detector,
  canvas_points,
  frozen_mask,
  init_variables,
  network_input,
)

__all__ = [
  'Detector',
  'Predictions',
  'build_detector',
  'frozen_mask',
  'init_variables',
  'canvas_points',
  'network_input',
]
