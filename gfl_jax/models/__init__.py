"""Flax modules of the detector, and the functions that build it from a config."""

from gfl_jax.models.detector import Detector as Detector
from gfl_jax.models.detector import Predictions as Predictions
from gfl_jax.models.detector import build_detector as build_detector
from gfl_jax.models.detector import canvas_points as canvas_points
from gfl_jax.models.detector import frozen_mask as frozen_mask
from gfl_jax.models.detector import init_variables as init_variables
from gfl_jax.models.detector import network_input as network_input
