"""Saves step after step until it is killed: endless_saver.py FOLDER SIZE."""

import pathlib
import sys

import numpy as np

from gfl_jax.checkpointing.manager import Checkpoints


def state(step, size):
  """A tree of arrays that follow from the step."""
  return {'w': np.full((size,), step, np.float32), 'v': np.full((3,), -step, np.int32)}


if __name__ == '__main__':
  folder, size = pathlib.Path(sys.argv[1]), int(sys.argv[2])
  with Checkpoints(folder) as checkpoints:
    first = (checkpoints.steps or [0])[-1]
    for step in range(first + 1, first + 10_000):
      checkpoints.save(step, state(step, size))
