"""The private names of jax without a public counterpart; a test fails if one moves."""

import logging
from typing import Any

_LOG = logging.getLogger(__name__)


def distributed_client() -> Any:
  """jax's storage of keys and values that the processes of a run share, or None."""
  from jax._src import distributed

  return distributed.global_state.client


def runs_on_cloud_tpu() -> bool:
  """Whether this machine is a Cloud TPU; `jax.devices()` would start the backend."""
  try:
    from jax._src import cloud_tpu_init

    return cloud_tpu_init.running_in_cloud_tpu_vm
  except (ImportError, AttributeError) as error:
    _LOG.warning('%s: on a TPU give --coordinator and the flags with it', error)
    return False
