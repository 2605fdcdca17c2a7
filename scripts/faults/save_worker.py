"""Fault injection: one of two processes that save and at times cannot write.

save_worker.py FOLDER
"""

import contextlib
import errno
import os
import pathlib
import resource
from unittest import mock

import jax
import jax.numpy as jnp
from absl import logging

from gfl_jax import launch
from gfl_jax.checkpointing import manager
from gfl_jax.training.parallel import DataParallel

_WAIT_SECONDS = 20  # for the process that fails; a run waits longer


def main(argv: list[str]) -> None:
  """Saves four steps; process 1 cannot write in step 2, nor process 0 in step 3."""
  logging.set_verbosity(logging.ERROR)
  manager._SAVE_SECONDS = _WAIT_SECONDS
  devices, me = DataParallel('jit'), jax.process_index()
  noise = jax.random.normal(jax.random.key(0), (512, 512))
  state = devices.replicate({'w': noise, 'v': jnp.ones(3)})
  before = resource.getrlimit(resource.RLIMIT_FSIZE)
  with manager.Checkpoints(pathlib.Path(argv[1]) / 'checkpoints') as checkpoints:
    for step in (1, 2, 3, 4):
      checkpoints.wait()
      if (step, me) == (2, 1):
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
      with no_new_folders() if (step, me) == (3, 0) else contextlib.nullcontext():
        checkpoints.save(step, state)
        if step in (2, 3):
          checkpoints._finish()
      resource.setrlimit(resource.RLIMIT_FSIZE, before)
    checkpoints.wait()
    restored, step = checkpoints.restore_newest(state) or (None, None)
    same = step == 4 and all(
      jax.tree.leaves(jax.tree.map(jnp.array_equal, restored, state))
    )
    print('stored:', checkpoints.steps if same else 'another state')


def no_new_folders():
  """A context in which no folder can be made, as on a full disk."""
  full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
  return mock.patch('os.mkdir', side_effect=full)


if __name__ == '__main__':
  launch.run(main, several_processes=True)
