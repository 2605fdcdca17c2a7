"""The private functions of jax and orbax that have no public counterpart.

They may move in a new version; tests/test_private_apis.py fails if one does.
"""

import threading
import warnings
from typing import Any


def distributed_client() -> Any:
  """jax's store of keys and values that the processes of a run share; orbax's, too."""
  from jax._src import distributed

  return distributed.global_state.client


def runs_on_cloud_tpu() -> bool:
  """Whether this machine is a Cloud TPU; `jax.devices()` would start the backend."""
  from jax._src import cloud_tpu_init

  return cloud_tpu_init.running_in_cloud_tpu_vm


def end_orbax_threads() -> None:
  """Ends the threads that orbax leaves behind after a save that failed.

  They wait five minutes for a folder that could not be made, and a process does not
  end before them.
  """
  from orbax.checkpoint._src.futures import future as futures

  for thread in threading.enumerate():
    if isinstance(thread, futures._SignalingThread):
      thread.cancel()
      futures.set_signals(thread._receive_signals, operation_id=thread._operation_id)
  # Their coroutines are given up on purpose.
  warnings.filterwarnings('ignore', 'coroutine .* was never awaited', RuntimeWarning)
