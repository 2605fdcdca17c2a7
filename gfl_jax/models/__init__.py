"""Flax modules of the detector, and the one function that builds it from a config."""

from gfl_jax.models.detector import (
  Detector,
  Predictions,
  build_detector,
  frozen_mask,
  make_anchors,
)

__all__ = ['Detector', 'Predictions', 'build_detector', 'frozen_mask', 'make_anchors']
