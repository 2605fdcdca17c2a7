"""A tiny trained detector, and whether programs find the same with it."""

import jax
import numpy as np

from gfl_jax import models
from gfl_jax.evaluation.decode import Detections
from gfl_jax.weights.trained import Trained
from tests import tiny


def trained(config=None, *, canvas=(64, 64)) -> Trained:
  """Random parameters, no threshold: the best boxes of all, suppressed."""
  config = config or tiny.config()
  config.data.canvas = canvas
  config.decode.update(score_threshold=0.0, max_detections=20)
  variables = models.init_variables(models.build_detector(config), jax.random.key(1))
  origin = {'run': 'runs/a', 'step': 7, 'weights': 'ema'}
  names = ('cell', 'plättchen', 'c')
  return Trained(config.lock(), jax.device_get(variables), names, (1, 7, 3), origin)


def batch(size=3, *, canvas=(64, 64)) -> dict[str, np.ndarray]:
  """Noise on canvases; the last row only fills up the batch."""
  rng = np.random.default_rng(0)
  shape = (size, *canvas, 3)
  sizes = np.array([canvas] * size, np.int32) - [[8, 0]]
  scales = rng.uniform(0.5, 2, (size, 2)).astype(np.float32)
  sizes[-1], scales[-1] = 0, 1
  images = rng.integers(0, 256, shape, np.uint8)
  return {'images': images, 'image_sizes': sizes.astype(np.int32), 'scales': scales}


def assert_same(actual: Detections, expected: Detections, *, atol: float):
  """Slot by slot; px and scores within atol."""
  assert expected.valid[:-1].all() and not expected.valid[-1].any()
  for name in ('valid', 'classes'):
    np.testing.assert_array_equal(getattr(actual, name), getattr(expected, name))
  for name in ('boxes', 'scores', 'edge_std'):
    found, wanted = getattr(actual, name), getattr(expected, name)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, wanted, rtol=0, atol=atol, err_msg=name)
