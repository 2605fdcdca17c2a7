"""Private functions of jax and orbax still exist; a new version may move them."""

import threading

import jax

from gfl_jax import private_apis


def test_jax_has_its_store_of_keys_and_values():
  assert private_apis.distributed_client() is None  # one process alone has none
  from jax._src.lib import _jax

  needed = ('key_value_set', 'key_value_dir_get', 'blocking_key_value_get')
  client = _jax.DistributedRuntimeClient
  assert all(hasattr(client, name) for name in (*needed, 'wait_at_barrier'))


def test_jax_says_whether_it_runs_on_a_cloud_tpu():
  assert private_apis.runs_on_cloud_tpu() == (jax.default_backend() == 'tpu')


def test_threads_of_orbax_that_wait_are_ended():
  from orbax.checkpoint._src.futures import future, synchronization

  thread = future._SignalingThread(
    target=lambda: None,
    send_signals=[],
    receive_signals=[synchronization.HandlerAwaitableSignal.STEP_DIRECTORY_CREATION],
    timeout_secs=60,
    operation_id=synchronization.OperationIdGenerator.next_operation_id(),
  )
  thread.start()
  private_apis.end_orbax_threads()
  threading.Thread.join(thread, 10)
  assert not thread.is_alive()
