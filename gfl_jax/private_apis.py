"""The private names of jax that have no public counterpart.

They may move in a new version; tests/test_private_apis.py fails if one does.
"""

from typing import Any


def distributed_client() -> Any:
  """jax's storage of keys and values that the processes of a run share, or None."""
  from jax._src import distributed

  return distributed.global_state.client


def runs_on_cloud_tpu() -> bool:
  """Whether this machine is a Cloud TPU; `jax.devices()` would start the backend."""
  from jax._src import cloud_tpu_init

  return cloud_tpu_init.running_in_cloud_tpu_vm
