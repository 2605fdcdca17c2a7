"""Several processes, one or more on each host, as one run.

`connect` joins them; from then on jax sees the devices of all. Without it everything
here does nothing, so that the training code is the same for one process and for many.
"""

import contextlib
import itertools
import json
import logging
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import jax

from gfl_jax.training.watch import (
  GO_ON,
  GRACE_SECONDS,
  SILENT_SECONDS_AFTER_FAILURE,
  Watch,
)

WAIT_FOR_ALL_SECONDS = 600  # for a host that starts late
# jax's own watch, which says less, comes after ours; see watch.py.
HEARTBEAT_SECONDS = 25
_BARRIER_SECONDS = 24 * 3600  # the watch ends a process whose peers are gone
_LOG = logging.getLogger(__name__)
_watch: Watch | None = None
_barriers = itertools.count()


def connect(
  coordinator: str | None, num_processes: int | None, process_id: int | None
) -> None:
  """Joins the processes of a run; call it before the first use of a device.

  Without arguments the hosts of a TPU slice, or of several, find each other; anywhere
  else this process stays alone, as it does with `num_processes` = 1. jax could look for
  Slurm and the like, too, but takes one process a GPU for granted there, and would hide
  all but one GPU from a process that has eight.

  Args:
    coordinator: HOST:PORT of process 0, which listens there.
    num_processes: of the run.
    process_id: number of this process, from 0.

  Raises:
    ValueError: arguments that do not fit together; a TPU that does not tell its hosts.
    TimeoutError: the others did not come within `WAIT_FOR_ALL_SECONDS`.
  """
  global _watch
  if num_processes == 1 and process_id in (None, 0):
    return
  _check(coordinator, num_processes, process_id)
  if coordinator is None and not _on_tpu():
    return
  if process_id == 0:
    _LOG.info(
      'Waiting for %d processes at %s, at most %d minutes.',
      num_processes,
      coordinator,
      WAIT_FOR_ALL_SECONDS // 60,
    )
  try:
    jax.distributed.initialize(
      coordinator,
      num_processes,
      process_id,
      cluster_detection_method='deactivate' if coordinator else None,
      initialization_timeout=WAIT_FOR_ALL_SECONDS,
      heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
    )
  except jax.errors.JaxRuntimeError as error:
    raise TimeoutError(
      f'not all processes came to {coordinator or "the first host"} within'
      f' {WAIT_FOR_ALL_SECONDS} s: {str(error).splitlines()[0]}'
    ) from error
  except (ValueError, RuntimeError) as error:
    raise ValueError(
      f'the hosts of this run cannot be found ({error}): give --coordinator,'
      ' --num_processes and --process_id, or --num_processes=1 to train on this host'
      ' alone'
    ) from error
  if jax.process_count() > 1:
    _watch = Watch(_client(), jax.process_index(), jax.process_count())
  if jax.process_index() > 0:
    _log_warnings_alone(jax.process_index())


def _check(
  coordinator: str | None, num_processes: int | None, process_id: int | None
) -> None:
  if coordinator is num_processes is process_id is None:
    return
  if coordinator is None or num_processes is None or process_id is None:
    raise ValueError(
      f'{coordinator=}, {num_processes=}, {process_id=}: give all three; none on a TPU'
      ' pod; or num_processes=1 alone'
    )
  if not coordinator.rpartition(':')[2].isdigit():
    raise ValueError(f'{coordinator=} must be HOST:PORT of process 0')
  if not 0 <= process_id < num_processes:
    raise ValueError(f'{process_id=} must be from 0 to {num_processes=} - 1')


def connected() -> bool:
  """There are several processes."""
  return _watch is not None


@contextlib.contextmanager
def work(*, takes_long: bool = False) -> Iterator[None]:
  """Work that all processes do in the same order, waiting for each other in it.

  A process that has not begun it long after the others is taken for stuck.

  Args:
    takes_long: however long it takes, this process is not stuck: it compiles, writes.
  """
  if _watch:
    _watch.begin(patient=takes_long)
  yield
  if _watch and takes_long:
    _watch.begin(patient=False)


def watched(function: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
  """`function(state, batch)`, a program of all processes, as work that the peers see.

  Its first call for a canvas compiles, which may take long.
  """
  canvases = set()

  def call(state: Any, batch: Any) -> Any:
    canvas = batch['images'].shape
    with work(takes_long=canvas not in canvases):
      result = function(state, batch)
    canvases.add(canvas)
    return result

  return call


def wait_for_all() -> None:
  """Returns when all processes have called this as often as this one."""
  if _watch:
    name = f'gfl_jax/{next(_barriers)}'
    _client().wait_at_barrier(name, _BARRIER_SECONDS * 1000)


def from_first(read: Callable[[], Any]) -> Any:
  """What `read` returns on process 0, on all: a value that JSON carries."""
  if not _watch:
    return read()
  name = f'gfl_jax/{next(_barriers)}'
  if jax.process_index() == 0:
    _client().key_value_set(name, json.dumps(read()))
  return json.loads(_client().blocking_key_value_get(name, _BARRIER_SECONDS * 1000))


@contextlib.contextmanager
def first_alone() -> Iterator[None]:
  """Process 0 does something first; the others then find its files if they see them.

  All leave together: on CPUs, the first collective fails if one is half a minute late.
  """
  if jax.process_index() > 0:
    wait_for_all()
  yield
  if jax.process_index() == 0:
    wait_for_all()
  wait_for_all()


@contextlib.contextmanager
def report_errors() -> Iterator[None]:
  """Tells the others of an error at once, before what it leaves behind is put in order.

  Closing a checkpoint folder, for one, waits for them.
  """
  try:
    yield
  except jax.errors.JaxRuntimeError:
    if _watch:
      _watch.failed()
    raise
  except Exception as error:
    if _watch:
      _watch.ends(f'error: {error}'.splitlines()[0])
    raise


def finish() -> int:
  """All is done: waits for the others, who may still write, and ends the watch.

  Returns:
    The number of this process.
  """
  global _watch
  if _watch:
    wait_for_all()
    _watch.close()
    _watch = None
  return jax.process_index()


def leave(text: str, code: int) -> NoReturn:
  """Ends this process with an error, and by it the others, each with a line.

  Args:
    text: the error; its first line is what the others show.
    code: exit status.
  """
  assert _watch is not None
  _watch.leave(text, code)


def leave_after_failure(error: Exception, *, show: bool) -> NoReturn:
  """Ends this process after an error that nobody foresaw.

  An error of jax may come from a collective whose peer is gone: which one shows a
  little later.

  Args:
    error: being handled.
    show: where an error of jax came from, too.
  """
  assert _watch is not None
  line = f'{type(error).__name__}: {error}'.splitlines()[0]
  of_jax = isinstance(error, jax.errors.JaxRuntimeError)
  if show or not of_jax:
    traceback.print_exc()
  if of_jax:
    _LOG.warning('A computation failed, looking for who is to blame: %s', line)
    _watch.failed()
    time.sleep(SILENT_SECONDS_AFTER_FAILURE + 2 * GRACE_SECONDS)
  leave(f'error: {line}\n{GO_ON}', 1)


def _on_tpu() -> bool:
  # Asking for the devices would start the backend, too early.
  from jax._src import cloud_tpu_init

  return cloud_tpu_init.running_in_cloud_tpu_vm


def _client() -> Any:
  # jax has no public name for the store that its processes share; orbax uses this, too.
  from jax._src import distributed

  return distributed.global_state.client


def _log_warnings_alone(process: int) -> None:
  logger = logging.getLogger('gfl_jax')
  logger.setLevel(logging.WARNING)
  for handler in logger.handlers:
    handler.setFormatter(logging.Formatter(f'process {process}: %(message)s'))
