"""Flax modules of the detector, and the functions that build it from a config."""

from gfl_jax.models.detector import (
  Detector,
  Predictions,
  build_detector,
  frozen_mask,
  init_variables,
  make_anchors,
  network_input,
)

__all__ = [
  'Detector',
  'Predictions',
  'build_detector',
  'frozen_mask',
  'init_variables',
  'make_anchors',
  'network_input',
]
