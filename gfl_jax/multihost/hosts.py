"""Several processes, one or more on each host, as one run.

`connect` joins them; from then on jax sees the devices of all. Without it everything
here does nothing, so that the training code is the same for one process and for many.
"""

import contextlib
import itertools
import json
import logging
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import jax

from gfl_jax.errors import EXIT_RETRYABLE, LateProcessError, UserError, is_transient
from gfl_jax.multihost.exit_reporter import ExitReporter
from gfl_jax.multihost.failure_detector import (
  GRACE_SECONDS,
  PATIENT_SECONDS,
  SILENT_SECONDS_AFTER_FAILURE,
  names,
)
from gfl_jax.multihost.watchdog import GO_ON, Watchdog

WAIT_FOR_ALL_SECONDS = 600  # for a host that starts late
# jax's own watch, which says less, comes after ours; see watch.py.
HEARTBEAT_SECONDS = 25
PREPARE_SECONDS = 24 * 3600.0  # the longest that a host may prepare its data
_TELL_SECONDS = 60.0  # of waiting, after which a line says for whom
_BARRIER_SECONDS = 7 * 24 * 3600  # the watch ends a process whose peers are gone
_LOG = logging.getLogger(__name__)
_watchdog: Watchdog | None = None
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
    LateProcessError: the others did not come within `WAIT_FOR_ALL_SECONDS`.
  """
  global _watchdog
  if num_processes == 1 and process_id in (None, 0):
    return
  _check(coordinator, num_processes, process_id)
  if coordinator is None and not _on_tpu():
    return
  minutes = WAIT_FOR_ALL_SECONDS // 60
  me = 'this process' if process_id is None else f'process {process_id}'
  if coordinator is None:
    _LOG.info('Waiting for all hosts of this TPU, at most %d minutes.', minutes)
  elif process_id == 0:
    waiting = 'Waiting for %d processes at %s, at most %d minutes.'
    _LOG.info(waiting, num_processes, coordinator, minutes)
  else:
    waiting = '%s: waiting for process 0 at %s, at most %d minutes.'
    _LOG.info(waiting, me, coordinator, minutes)
  # Jax aborts a process that the coordinator does not take, or that waits in vain.
  exit_reporter = ExitReporter(
    f'{me}: error: not all processes came to {coordinator or "the first host"} within'
    f' {WAIT_FOR_ALL_SECONDS} s, or two with the same --process_id, or with different'
    ' --num_processes: see above, and start all processes again'
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
    exit_reporter.dismiss()
    raise LateProcessError(
      f'not all processes came to {coordinator or "the first host"} within'
      f' {WAIT_FOR_ALL_SECONDS} s: {str(error).splitlines()[0]}'
    ) from error
  except (ValueError, RuntimeError) as error:
    exit_reporter.dismiss()
    raise UserError(
      f'the hosts of this run cannot be found ({error}): give --coordinator,'
      ' --num_processes and --process_id, or --num_processes=1 to train on this host'
      ' alone'
    ) from error
  logging.getLogger('absl').addFilter(_is_told)
  if jax.process_count() == 1:
    exit_reporter.dismiss()
    return
  number = jax.process_index()
  _watchdog = Watchdog(_client(), number, jax.process_count(), exit_reporter)
  by_jax = 'process 0, the coordinator, is gone' if number else 'see above'
  exit_reporter.expect(
    f'process {number}: error: it was killed, or by jax: {by_jax}. {GO_ON}'
  )
  if number > 0:
    _log_warnings_alone(number)


def _check(
  coordinator: str | None, num_processes: int | None, process_id: int | None
) -> None:
  if coordinator is num_processes is process_id is None:
    return
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
  if num_processes < 1:
    raise UserError(f'{num_processes=} must be at least 1')
  if not 0 <= process_id < num_processes:
    raise UserError(f'{process_id=} must be from 0 to {num_processes=} - 1')
  try:
    socket.getaddrinfo(host.strip('[]'), port)
  except OSError as error:
    raise UserError(f'{coordinator=}: the host is not known here ({error})') from error
  if process_id > 0:
    return
  try:  # jax, whose own error here is often a segmentation fault, will listen there
    socket.create_server(('', int(port))).close()
  except OSError as error:
    raise UserError(
      f'{coordinator=}: this host cannot listen there ({error.strerror}): does an older'
      ' run still live? Else give another port'
    ) from error


def connected() -> bool:
  """There are several processes."""
  return _watchdog is not None


@contextlib.contextmanager
def work(*, takes_long: bool = False) -> Iterator[None]:
  """Work that all processes do in the same order, waiting for each other in it.

  A process that has not begun it long after the others is taken for stuck.

  Args:
    takes_long: however long it takes, this process is not stuck: it compiles, writes.
  """
  if _watchdog:
    _watchdog.begin(patient=takes_long)
  yield
  if _watchdog and takes_long:
    _watchdog.begin(patient=False)


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
  """Returns when all processes have called this as often as this one.

  Whoever lives and does not come within `judge.PATIENT_SECONDS` is taken for stuck.
  """
  _meet(PATIENT_SECONDS)


def _meet(allowed: float) -> None:
  """Waits for all, and for a peer that lives so many seconds."""
  name = f'gfl_jax/{next(_barriers)}'
  with _waiting(allowed):
    if _watchdog:
      _client().wait_at_barrier(name, _BARRIER_SECONDS * 1000)


@contextlib.contextmanager
def _waiting(allowed: float) -> Iterator[None]:
  """Work that is nothing but waiting; if it takes long, a line says for whom.

  A process begins it when it comes, so that those who are not there yet are behind.
  What they do meanwhile may take long, too: until `allowed` seconds are over.
  """
  if not _watchdog:
    yield
    return
  _watchdog.begin(patient=True, allowed=allowed)
  tell = threading.Timer(_TELL_SECONDS, _tell_for_whom, (allowed,))
  tell.daemon = True
  tell.start()
  try:
    yield
  finally:
    tell.cancel()


def _tell_for_whom(allowed: float) -> None:
  if _watchdog and (behind := _watchdog.behind()):
    _LOG.warning('Waiting for %s, at most %d min.', names(behind), allowed / 60)


def from_first(read: Callable[[], Any]) -> Any:
  """What `read` returns on process 0, on all: a value that JSON carries.

  If it has not returned within `judge.PATIENT_SECONDS`, process 0 is taken for stuck.
  """
  if not _watchdog:
    return read()
  name = f'gfl_jax/{next(_barriers)}'
  text = json.dumps(read()) if jax.process_index() == 0 else None
  with _waiting(PATIENT_SECONDS):
    if text is not None:
      _client().key_value_set(name, text)
      return json.loads(text)
    return json.loads(_client().blocking_key_value_get(name, _BARRIER_SECONDS * 1000))


@contextlib.contextmanager
def first_alone() -> Iterator[None]:
  """Process 0 prepares data first; the others then find its files if they see them.

  Those that do not see them prepare their own. Each may take hours, and a process that
  prepares cannot be told from one whose disk has died: one that lives is taken for
  stuck after `PREPARE_SECONDS` only, but after a minute a line says for whom all wait.
  One that is killed is found as ever.

  All leave together: on CPUs, the first collective fails if one is half a minute late.
  """
  if jax.process_index() > 0:
    _meet(PREPARE_SECONDS)
  yield
  if jax.process_index() == 0:
    _meet(PREPARE_SECONDS)
  _meet(PREPARE_SECONDS)


@contextlib.contextmanager
def report_errors() -> Iterator[None]:
  """Tells the others of an error at once, before what it leaves behind is put in order.

  Closing a checkpoint folder, for one, waits for them.
  """
  try:
    yield
  except jax.errors.JaxRuntimeError:
    if _watchdog:
      _watchdog.failed()
    raise
  except Exception as error:
    if _watchdog:
      _watchdog.ends(f'error: {error}', retryable=is_transient(error))
    raise


def finish() -> int:
  """All is done: waits for the others, who may still write, and ends the watch.

  Returns:
    The number of this process.
  """
  global _watchdog
  if _watchdog:
    wait_for_all()
    _watchdog.close()
    _watchdog = None
  return jax.process_index()


def leave(text: str, code: int, *, retryable: bool, advice: str = '') -> NoReturn:
  """Ends this process with an error, and by it the others, each with a line.

  Args:
    text: the error, which the others show, too.
    code: exit status.
    retryable: whether the others are to say that starting all again may help.
    advice: a line that this process alone shows.
  """
  assert _watchdog is not None
  _watchdog.leave(text, code, retryable=retryable, advice=advice)


def leave_after_failure(error: Exception, *, show: bool) -> NoReturn:
  """Ends this process after an error that is shown with its traceback.

  An error of jax may come from a collective whose peer is gone: which one shows a
  little later.

  Args:
    error: being handled; nobody may have foreseen it.
    show: where an error of jax came from, too.
  """
  assert _watchdog is not None
  line = f'{type(error).__name__}: {error}'.splitlines()[0]
  of_jax = isinstance(error, jax.errors.JaxRuntimeError)
  if show or not of_jax:
    traceback.print_exc()
  if of_jax:
    _LOG.warning('A computation failed, looking for who is to blame: %s', line)
    _watchdog.failed()
    time.sleep(SILENT_SECONDS_AFTER_FAILURE + 2 * GRACE_SECONDS)
  if is_transient(error):
    leave(f'error: {line}', EXIT_RETRYABLE, retryable=True, advice=GO_ON)
  leave(f'error: {line}', 1, retryable=False)


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


def _is_told(record: logging.LogRecord) -> bool:
  # Orbax tells of a stop on each process and at each look; Preemption does it once.
  return 'Reached preemption sync point' not in str(record.msg)
