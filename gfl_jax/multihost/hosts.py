"""Several processes, one or more on each host, as one run.

After `connect` jax sees the devices of all processes. Without it every function here
does nothing, so that the training code is the same for one process and for many.
"""

import contextlib
import itertools
import json
import logging
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import jax

from gfl_jax import private_apis
from gfl_jax.errors import LateProcessError, UserError, is_transient
from gfl_jax.multihost.exit_reporter import ExitReporter
from gfl_jax.multihost.failure_detector import LONG_STUCK_SECONDS, names
from gfl_jax.multihost.watchdog import START_AGAIN, Watchdog

WAIT_FOR_ALL_SECONDS = 600  # for a host that starts late
# jax's own check of its processes, whose message says less, comes after the watchdog's.
JAX_HEARTBEAT_SECONDS = 25
PREPARE_SECONDS = 24 * 3600.0  # the longest that a host may prepare its data
_NAME_LATE_AFTER_SECONDS = 60.0
_BARRIER_SECONDS = 7 * 24 * 3600  # the watchdog ends a process whose peers have failed
_LOG = logging.getLogger(__name__)
watchdog: Watchdog | None = None
"""None if this process is alone."""
_barriers = itertools.count()


def connect(
  coordinator: str | None, num_processes: int | None, process_id: int | None
) -> None:
  """Joins the processes of a run; call it before the first use of a device.

  Without arguments the hosts of one or several TPU slices find each other; elsewhere
  this process stays alone, as it does with `num_processes` = 1. Slurm and the like are
  not used: jax would assume one process for each GPU there, and a process with eight
  GPUs would see one.

  Args:
    coordinator: HOST:PORT of process 0, which listens there.
    num_processes: of the run.
    process_id: number of this process, from 0.

  Raises:
    ValueError: arguments that do not fit together; a TPU whose hosts are not found.
    LateProcessError: the others did not join within `WAIT_FOR_ALL_SECONDS`.
  """
  global watchdog
  if num_processes == 1 and process_id in (None, 0):
    return
  if coordinator is num_processes is process_id is None:
    if not private_apis.runs_on_cloud_tpu():
      return
  else:
    _check(coordinator, num_processes, process_id)
  where = coordinator or 'the first host'
  me = 'this process' if process_id is None else f'process {process_id}'
  others = 'process 0' if process_id else f'{num_processes or "all"} processes'
  minutes = WAIT_FOR_ALL_SECONDS // 60
  _LOG.info('%s: waiting for %s at %s, at most %d minutes.', me, others, where, minutes)
  late = f'not all processes joined at {where} within {WAIT_FOR_ALL_SECONDS} s'
  # jax aborts a process that the coordinator refuses, or that waits too long.
  exit_reporter = ExitReporter(
    f'{me}: error: {late}, or two have the same --process_id, or different'
    ' --num_processes: see above, and start all processes again'
  )
  try:
    jax.distributed.initialize(
      coordinator,
      num_processes,
      process_id,
      cluster_detection_method='deactivate' if coordinator else None,
      initialization_timeout=WAIT_FOR_ALL_SECONDS,
      heartbeat_timeout_seconds=JAX_HEARTBEAT_SECONDS,
    )
  except (ValueError, RuntimeError) as error:
    exit_reporter.cancel()
    if isinstance(error, jax.errors.JaxRuntimeError):
      raise LateProcessError(f'{late}: {str(error).splitlines()[0]}') from error
    raise UserError(
      f'the hosts of this run cannot be found ({error}): give --coordinator,'
      ' --num_processes and --process_id, or --num_processes=1 to train on this host'
      ' alone'
    ) from error
  # orbax logs a preemption on each process at each check; Preemption logs it once.
  not_preemption = lambda x: 'Reached preemption sync point' not in str(x.msg)
  logging.getLogger('absl').addFilter(not_preemption)
  if jax.process_count() == 1:
    exit_reporter.cancel()
    return
  number, client = jax.process_index(), private_apis.distributed_client()
  watchdog = Watchdog(client, number, jax.process_count(), exit_reporter)
  by_jax = 'process 0, the coordinator, has ended' if number else 'see above'
  exit_reporter.set_text(
    f'process {number}: error: it was killed, or aborted by jax: {by_jax}.'
    f' {START_AGAIN}'
  )
  if number > 0:  # process 0 alone logs more than warnings
    logger = logging.getLogger('gfl_jax')
    logger.setLevel(logging.WARNING)
    for handler in logger.handlers:
      handler.setFormatter(logging.Formatter(f'process {number}: %(message)s'))


def _check(
  coordinator: str | None, num_processes: int | None, process_id: int | None
) -> None:
  if coordinator is None or num_processes is None or process_id is None:
    raise UserError(
      f'{coordinator=}, {num_processes=}, {process_id=}: give all three; none on a TPU'
      ' pod; or num_processes=1 alone'
    )
  host, _, port = coordinator.rpartition(':')
  if not host or not port.isdigit() or not 0 < int(port) < 2**16:
    raise UserError(
      f'{coordinator=} must be HOST:PORT of process 0, a port from 1 to 65535'
    )
  if not 0 <= process_id < num_processes:
    raise UserError(f'{process_id=} must be at least 0 and less than {num_processes=}')
  try:
    socket.getaddrinfo(host.strip('[]'), port)
    if process_id == 0:  # jax will listen there; its error is a segmentation fault
      socket.create_server(('', int(port))).close()
  except socket.gaierror as error:
    raise UserError(f'{coordinator=}: the host cannot be resolved ({error})') from error
  except OSError as error:
    raise UserError(
      f'{coordinator=}: this host cannot listen there ({error.strerror}): stop an older'
      ' run that still uses the port, or give another port'
    ) from error


@contextlib.contextmanager
def work(*, takes_long: bool = False) -> Iterator[None]:
  """A work item that all processes do in the same order, waiting for each other in it.

  The watchdog ends the run if a process does not start it for long after the others.

  Args:
    takes_long: it compiles, evaluates or saves, so the others wait for it longer.
  """
  if watchdog:
    watchdog.start_work(long=takes_long)
  yield
  if watchdog and takes_long:
    watchdog.start_work(long=False)


def watched(function: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
  """`function(state, batch)`, a program of all processes, with `work` around it.

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


def wait_for_all(allowed: float = LONG_STUCK_SECONDS) -> None:
  """Returns when all processes have called this as often as this one.

  Args:
    allowed: a running process that has not called it after so many seconds is stuck.
  """
  name = f'gfl_jax/{next(_barriers)}'
  with _waiting(allowed):
    if watchdog:
      client = private_apis.distributed_client()
      client.wait_at_barrier(name, _BARRIER_SECONDS * 1000)


@contextlib.contextmanager
def _waiting(allowed: float) -> Iterator[None]:
  """A work item that only waits; a line names the others if it takes a minute.

  A process starts it when it arrives, so those that have not arrived are behind.
  """
  if not watchdog:
    yield
    return
  watchdog.start_work(long=True, allowed=allowed)
  timer = threading.Timer(_NAME_LATE_AFTER_SECONDS, _name_late, (allowed,))
  timer.daemon = True
  timer.start()
  try:
    yield
  finally:
    timer.cancel()


def _name_late(allowed: float) -> None:
  if watchdog and (behind := watchdog.behind()):
    _LOG.warning('Waiting for %s, at most %d min.', names(behind), allowed / 60)


def from_first(read: Callable[[], Any]) -> Any:
  """The value of `read` on process 0, on all processes; JSON must be able to hold it.

  If process 0 runs and has none within `LONG_STUCK_SECONDS`, it counts as stuck.
  """
  if not watchdog:
    return read()
  name = f'gfl_jax/{next(_barriers)}'
  text = json.dumps(read()) if jax.process_index() == 0 else None
  client = private_apis.distributed_client()
  with _waiting(LONG_STUCK_SECONDS):
    if text is not None:
      client.key_value_set(name, text)
      return json.loads(text)
    return json.loads(client.blocking_key_value_get(name, _BARRIER_SECONDS * 1000))


@contextlib.contextmanager
def first_alone() -> Iterator[None]:
  """Process 0 prepares data first; the others then use its files if they see them.

  Processes that do not see them prepare their own. Preparing may take hours, so that a
  running process counts as stuck only after `PREPARE_SECONDS`; one that is killed is
  found as always. After a minute a line names the process that the others wait for.

  All leave together: on CPUs the first collective fails if one is half a minute late.
  """
  if jax.process_index() > 0:
    wait_for_all(PREPARE_SECONDS)
  yield
  if jax.process_index() == 0:
    wait_for_all(PREPARE_SECONDS)
  wait_for_all(PREPARE_SECONDS)


@contextlib.contextmanager
def report_errors() -> Iterator[None]:
  """Reports an error to the others at once, before this process cleans up.

  Cleaning up may wait for the others, as closing the checkpoints does.
  """
  try:
    yield
  except jax.errors.JaxRuntimeError:
    if watchdog:
      watchdog.report_failed_collective()
    raise
  except Exception as error:
    if watchdog:
      watchdog.report_error(f'error: {error}', retryable=is_transient(error))
    raise


def finish() -> int:
  """Ends the watchdog when all processes are done; returns this one's number."""
  global watchdog
  if watchdog:
    wait_for_all()
    watchdog.close()
    watchdog = None
  return jax.process_index()
