"""Ends a process whose peers failed or are stuck, with a line that names them.

A collective waits for its peers without limit, and jax ends a process only when a peer
stops running: a peer that runs but is stuck would block all. So each process sends
heartbeats through the coordinator, from a thread of its own, with the number of work
items that it has started. It ends when a peer is silent or falls behind.
"""

import contextlib
import dataclasses
import json
import logging
import math
import os
import sys
import threading
import time
import traceback
from collections.abc import Collection
from typing import Any, NoReturn

import jax

from gfl_jax.errors import EXIT_RETRYABLE, is_transient
from gfl_jax.multihost.exit_reporter import ExitReporter
from gfl_jax.multihost.failure_detector import (
  GRACE_SECONDS,
  HEARTBEAT_SECONDS,
  SILENT_SECONDS_AFTER_FAILURE,
  FailureDetector,
  Heartbeat,
)

CLEANUP_SECONDS = 60.0  # in which a process with an error may finish its checkpoint
PAUSE_SECONDS = 4.0  # without running: a stopped machine, or a call that holds Python
MAX_TEXT = 1000  # characters of an error that peers receive
START_AGAIN = 'Start all processes again: the run continues from its last checkpoint.'
_FOLDER = 'gfl_jax/watchdog/'
_LOG = logging.getLogger(__name__)


def on_one_line(text: str) -> str:
  """A text's lines joined into one, cut off after `MAX_TEXT` characters."""
  lines = '; '.join(line.strip() for line in text.splitlines()).replace(':; ', ': ')
  return lines if len(lines) <= MAX_TEXT else f'{lines[: MAX_TEXT - 4]} ...'


class Watchdog:
  """The threads that send heartbeats, receive them and end the process."""

  def __init__(
    self, client: Any, process: int, count: int, exit_reporter: ExitReporter
  ):
    """Starts the threads.

    Args:
      client: of jax's distributed service, which stores keys and values.
      process: number of this process.
      count: of all processes.
      exit_reporter: of this process; cancelled when the watchdog reports the end.
    """
    self._exit_reporter = exit_reporter
    self._client, self._process = client, process
    self._detector = FailureDetector(process, count, time.monotonic())
    self._heartbeat = Heartbeat()
    self._lock = threading.Lock()
    self._leaving = threading.Lock()
    self._exchanging = threading.Lock()  # so that the last heartbeat sent is the newest
    self._failed = False
    self._allowed = 0.0
    self._error_at = math.inf
    # File descriptor 2 may be redirected when this process ends (TensorFlow's start).
    # Never closed: a thread may be about to write to it.
    self._stderr = os.dup(2)
    self._closed = threading.Event()
    for run in (self._exchange_until_closed, self._check_until_closed):
      threading.Thread(target=run, daemon=True, name=f'watchdog{run.__name__}').start()

  def _update(self, **fields: Any) -> None:
    self._heartbeat = dataclasses.replace(self._heartbeat, **fields)

  def start_work(self, *, long: bool, allowed: float = 0.0) -> None:
    """Counts a work item that all processes do.

    Args:
      long: it may take long.
      allowed: seconds that this process waits in it at least for a running peer.
    """
    with self._lock:
      self._allowed = allowed
      self._update(started=self._heartbeat.started + 1, long=long)

  def behind(self) -> list[int]:
    """Peers that have not started the work item that this process is in."""
    with self._lock:
      return self._detector.behind(self._heartbeat.started)

  def close(self) -> None:
    """Ends the threads; all processes are known to be done."""
    self._closed.set()
    self._exit_reporter.cancel()

  def report_failed_collective(self) -> None:
    """A collective failed: from now on silent peers are found sooner."""
    self._failed = True

  def report_error(self, text: str, *, retryable: bool) -> None:
    """Sends the error with which this process ends after it has cleaned up."""
    with self._lock:
      self._update(error=on_one_line(text), retryable=retryable)
      self._error_at = time.monotonic()

  def leave(
    self,
    text: str,
    *,
    retryable: bool,
    status: int | None = None,
    advice: str = '',
    failed_peers: Collection[int] = (),
  ) -> NoReturn:
    """Ends this process now and sends the reason to the others.

    `jax.distributed.shutdown` would wait for minutes for all processes.

    Args:
      text: the reason; the others show it on one line.
      retryable: the reason may not come back when all processes are started again.
      status: of the process; by default `EXIT_RETRYABLE` if retryable, otherwise 1.
      advice: a line that only this process shows; if retryable by default
        `START_AGAIN`.
      failed_peers: peers that are not waited for.
    """
    with self._leaving:  # never released: the first thread to leave gives the reason
      if status is None:
        status = EXIT_RETRYABLE if retryable else 1
        advice = advice or (START_AGAIN if retryable else '')
      lines = f'\nprocess {self._process}: {text}\n{advice}'.rstrip('\n')
      with contextlib.suppress(OSError):  # the terminal may be closed
        sys.stderr.flush()
        os.write(self._stderr, f'{lines}\n'.encode(errors='replace'))
      self._exit_reporter.cancel()
      self.report_error(text, retryable=retryable)
      # In a thread, because a coordinator that is stopped never answers.
      last_exchange = threading.Thread(target=self._exchange, daemon=True)
      last_exchange.start()
      last_exchange.join(GRACE_SECONDS)
      if self._process == 0:
        self._wait_for_others(failed_peers)
      with contextlib.suppress(OSError):
        sys.stdout.flush()
      os._exit(status)

  def leave_after(self, error: Exception, *, show: bool) -> NoReturn:
    """Ends this process after an error that is being handled, with its traceback.

    An error of jax may come from a collective of which a peer has failed: this process
    then has time to find that peer, and the error has a traceback only if `show`.
    """
    line = f'{type(error).__name__}: {error}'.splitlines()[0]
    of_jax = isinstance(error, jax.errors.JaxRuntimeError)
    if show or not of_jax:
      traceback.print_exc()
    if of_jax:
      _LOG.warning('A computation failed; looking for a failed process: %s', line)
      self.report_failed_collective()
      time.sleep(SILENT_SECONDS_AFTER_FAILURE + 2 * GRACE_SECONDS)
    self.leave(f'error: {line}', retryable=is_transient(error))

  def _wait_for_others(self, failed_peers: Collection[int]) -> None:
    # When the coordinator ends, jax aborts the others before they can report why.
    limit = time.monotonic() + GRACE_SECONDS + 3 * HEARTBEAT_SECONDS
    while self._detector.running() - set(failed_peers) and time.monotonic() < limit:
      time.sleep(HEARTBEAT_SECONDS / 4)

  def _exchange_until_closed(self) -> None:
    while not self._closed.is_set():
      try:
        self._exchange()
      except Exception as error:  # if it lasts, the failure detector reports it
        _LOG.debug('no answer from the coordinator: %s', error)
      self._closed.wait(HEARTBEAT_SECONDS)

  def _exchange(self) -> None:
    with self._exchanging:
      with self._lock:
        self._update(count=self._heartbeat.count + 1)
        sent = json.dumps(dataclasses.astuple(self._heartbeat))
      key = f'{_FOLDER}{self._process}'
      self._client.key_value_set(key, sent, allow_overwrite=True)
      stored = self._client.key_value_dir_get(_FOLDER)
      heartbeats = {
        int(key.rsplit('/')[-1]): Heartbeat(*json.loads(text)) for key, text in stored
      }
      with self._lock:
        self._detector.receive(heartbeats, self._heartbeat.started, time.monotonic())

  def _check_until_closed(self) -> None:
    before = time.monotonic()
    while not self._closed.wait(HEARTBEAT_SECONDS / 2):
      now = time.monotonic()
      paused, before = now - before > PAUSE_SECONDS, now
      with self._lock:
        if paused:
          self._detector.restart(now)
        own = self._heartbeat
        late = now - self._error_at > CLEANUP_SECONDS
        silent = self._detector.any_silent(SILENT_SECONDS_AFTER_FAILURE)
        diagnosis = self._detector.diagnose(
          now, failed=self._failed, allowed=self._allowed
        )
      if own.error and (late or silent):
        self.leave(own.error, retryable=own.retryable)
      if diagnosis and not own.error:
        text, peers = f'error: {diagnosis.text}.', diagnosis.failed_peers
        self.leave(text, retryable=diagnosis.retryable, failed_peers=peers)
