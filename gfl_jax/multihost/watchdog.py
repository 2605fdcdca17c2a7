"""Ends a process whose peers are gone or stuck, with a line that names them.

A collective waits for its peers for ever, and jax ends a process only where a peer's
heartbeat stops: one that lives and hangs would hang all. So each process tells the
others, through the coordinator and from a thread of its own, how much work it has
begun, and ends when one is silent or falls behind.
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
from collections.abc import Collection
from typing import Any, NoReturn

from gfl_jax.errors import EXIT_RETRYABLE
from gfl_jax.multihost.exit_reporter import ExitReporter
from gfl_jax.multihost.failure_detector import (
  BEAT_SECONDS,
  GRACE_SECONDS,
  SILENT_SECONDS_AFTER_FAILURE,
  FailureDetector,
  Heartbeat,
)

ORDER_SECONDS = 60.0  # a process with an error may finish the checkpoint begun before
PAUSE_SECONDS = 4.0  # of all threads: a stopped machine, or a call that holds Python
MAX_TEXT = 1000  # characters of an error that the others are told
GO_ON = 'Start all processes again: the run goes on from its last checkpoint.'
_FOLDER = 'gfl_jax/watch/'
_LOG = logging.getLogger(__name__)


def on_one_line(text: str) -> str:
  """A text's lines as parts of one, cut off after `MAX_TEXT` characters."""
  lines = '; '.join(line.strip() for line in text.splitlines()).replace(':; ', ': ')
  return lines if len(lines) <= MAX_TEXT else f'{lines[: MAX_TEXT - 4]} ...'


class Watchdog:
  """The threads of a process that tell, listen and end it."""

  def __init__(
    self, client: Any, process: int, count: int, exit_reporter: ExitReporter
  ):
    """Starts to tell and to listen.

    Args:
      client: of jax's distributed service: a store of keys and values.
      process: number of this one.
      count: of all.
      exit_reporter: of this process's end, dismissed when that is told.
    """
    self._exit_reporter = exit_reporter
    self._client, self._process = client, process
    self._detector = FailureDetector(process, count, time.monotonic())
    self._heartbeat = Heartbeat()
    self._lock = threading.Lock()
    self._leaving = threading.Lock()
    self._exchanging = threading.Lock()  # what is told last is the newest
    self._failed = False
    self._allowed = 0.0
    self._ended_at = math.inf
    # Stderr itself may lead elsewhere when this process ends, as while TensorFlow
    # starts. Never closed: a thread may be about to write to it.
    self._stderr = os.dup(2)
    self._closed = threading.Event()
    for run in (self._tell_and_listen, self._decide):
      threading.Thread(target=run, daemon=True, name=f'watch{run.__name__}').start()

  def begin(self, *, patient: bool, allowed: float = 0.0) -> None:
    """A piece of work begins that all processes do.

    Args:
      patient: it may take long.
      allowed: seconds that this process waits in it at least for a peer that lives.
    """
    with self._lock:
      self._allowed = allowed
      self._heartbeat = dataclasses.replace(
        self._heartbeat, begun=self._heartbeat.begun + 1, patient=patient
      )

  def behind(self) -> list[int]:
    """Peers that have not begun the piece of work that this process is in."""
    with self._lock:
      return self._detector.behind(self._heartbeat.begun)

  def close(self) -> None:
    """Ends the threads; all processes are known to be done."""
    self._closed.set()
    self._exit_reporter.dismiss()

  def failed(self) -> None:
    """A collective of this process has failed: who is to blame shows sooner now."""
    self._failed = True

  def ends(self, text: str, *, retryable: bool) -> None:
    """This process ends with an error, after what it still has to put in order.

    Args:
      text: the error.
      retryable: as in `leave`.
    """
    with self._lock:
      ended = on_one_line(text)
      self._heartbeat = dataclasses.replace(
        self._heartbeat, ended=ended, retryable=retryable
      )
      self._ended_at = time.monotonic()

  def leave(
    self,
    text: str,
    code: int,
    *,
    retryable: bool,
    advice: str = '',
    failed_peers: Collection[int] = (),
  ) -> NoReturn:
    """Ends this process now; the others are told why.

    jax's own way out, `jax.distributed.shutdown`, waits for minutes for all processes.

    Args:
      text: why; as one line it is what the others show.
      code: exit status.
      retryable: its cause may not come back when all processes are started again.
      advice: a line that this process alone shows.
      failed_peers: peers that are not waited for.
    """
    with self._leaving:  # never released: the first to leave says why
      lines = f'\nprocess {self._process}: {text}\n{advice}'.rstrip('\n')
      with contextlib.suppress(OSError):  # nobody may be reading any more
        sys.stderr.flush()
        os.write(self._stderr, f'{lines}\n'.encode(errors='replace'))
      self._exit_reporter.dismiss()
      self.ends(text, retryable=retryable)
      # Not in this thread: a coordinator that is stopped never answers.
      farewell = threading.Thread(target=self._exchange, daemon=True)
      farewell.start()
      farewell.join(GRACE_SECONDS)
      if self._process == 0:
        self._let_others_leave(failed_peers)
      with contextlib.suppress(OSError):
        sys.stdout.flush()
      os._exit(code)

  def _let_others_leave(self, failed_peers: Collection[int]) -> None:
    # When the coordinator ends, jax aborts all others before they can say why.
    limit = time.monotonic() + GRACE_SECONDS + 3 * BEAT_SECONDS
    while time.monotonic() < limit:
      if self._detector.running() <= set(failed_peers):
        return
      time.sleep(BEAT_SECONDS / 4)

  def _tell_and_listen(self) -> None:
    while not self._closed.is_set():
      try:
        self._exchange()
      except (
        Exception
      ) as error:  # the coordinator may be back; if not, see FailureDetector
        _LOG.debug('no answer from the coordinator: %s', error)
      self._closed.wait(BEAT_SECONDS)

  def _exchange(self) -> None:
    with self._exchanging:
      with self._lock:
        self._heartbeat = dataclasses.replace(
          self._heartbeat, count=self._heartbeat.count + 1
        )
        mine = json.dumps(dataclasses.astuple(self._heartbeat))
      key = f'{_FOLDER}{self._process}'
      self._client.key_value_set(key, mine, allow_overwrite=True)
      stored = self._client.key_value_dir_get(_FOLDER)
      heartbeats = {
        int(key.rsplit('/')[-1]): Heartbeat(*json.loads(text)) for key, text in stored
      }
      with self._lock:
        self._detector.hear(heartbeats, self._heartbeat.begun, time.monotonic())

  def _decide(self) -> None:
    before = time.monotonic()
    while not self._closed.wait(BEAT_SECONDS / 2):
      now = time.monotonic()
      paused, before = now - before > PAUSE_SECONDS, now
      with self._lock:
        if paused:
          self._detector.resume(now)
        mine = self._heartbeat
        late = now - self._ended_at > ORDER_SECONDS
        gone = self._detector.gone(SILENT_SECONDS_AFTER_FAILURE)
        diagnosis = self._detector.diagnosis(
          now, failed=self._failed, allowed=self._allowed
        )
      if mine.ended and (late or gone):
        self._leave_with(mine.ended, mine.retryable)
      if diagnosis and not mine.ended:
        self._leave_with(
          f'error: {diagnosis.text}.', diagnosis.retryable, diagnosis.failed_peers
        )

  def _leave_with(
    self, text: str, retryable: bool, failed_peers: Collection[int] = ()
  ) -> None:
    status, advice = (EXIT_RETRYABLE, GO_ON) if retryable else (1, '')
    self.leave(
      text, status, retryable=retryable, advice=advice, failed_peers=failed_peers
    )
