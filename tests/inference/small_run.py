"""A run's folder that finds something in any image, in seconds."""

import jax

from gfl_jax.checkpointing.manager import Checkpoints
from gfl_jax.models import build_detector, init_variables
from gfl_jax.training import run_folder, step
from tests import tiny

NAMES, IDS = ('ring', 'disk', 'bår'), (3, 5, 9)


def config():
  """The tiny network on 64 x 96 canvases; untrained as it is, it hides nothing."""
  c = tiny.config()
  c.data.update(canvas=(64, 96), short_side=(64, 64), max_long_side=96)
  c.decode.update(score_threshold=0.0, max_detections=20)
  return c


def write(folder):
  """Writes the run, with one step and parameters far enough from 0 that scores differ
  by more than rounding."""
  c = config()
  run_folder.open_run(folder, c)
  run_folder.write_classes(folder, NAMES, IDS)
  variables = init_variables(build_detector(c), jax.random.key(0))
  variables['params']['head']['class_output']['kernel'] *= 100
  variables['params']['head']['box_output']['kernel'] *= 100
  with Checkpoints(folder / 'checkpoints') as stored:
    stored.save(1, step.create_state(variables, c))
  return folder
