"""One of two processes that save; the second cannot write for a while: fault injection.

fault_store_worker.py FOLDER
"""

import pathlib
import resource

import jax
import jax.numpy as jnp
from absl import logging

from gfl_jax import launch
from gfl_jax.checkpointing import manager
from gfl_jax.training.parallel import DataParallel

_WAIT_SECONDS = 20  # for the process that fails; a run waits longer


def main(argv: list[str]) -> None:
  """Saves three steps, the second without space on process 1 at first."""
  logging.set_verbosity(logging.ERROR)
  manager._SAVE_SECONDS = _WAIT_SECONDS
  devices = DataParallel('jit')
  noise = jax.random.normal(jax.random.key(0), (512, 512))
  state = devices.replicate({'w': noise, 'v': jnp.ones(3)})
  before = resource.getrlimit(resource.RLIMIT_FSIZE)
  with manager.Checkpoints(pathlib.Path(argv[1]) / 'checkpoints') as store:
    for step in (1, 2, 3):
      store.wait()
      if step == 2 and jax.process_index() == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
      store.save(step, state)
      if step == 2:
        store._finish()
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    store.wait()
    restored, step = store.restore_newest(state) or (None, None)
    same = step == 3 and all(
      jax.tree.leaves(jax.tree.map(jnp.array_equal, restored, state))
    )
    print('stored:', store.steps if same else 'another state')


if __name__ == '__main__':
  launch.run(main, several_processes=True)
