"""Saving and stopping when a run is asked to stop."""

import itertools
import logging
import signal
import threading

import jax
from jax.experimental import multihost_utils

_LOG = logging.getLogger(__name__)
# From a user's Ctrl-C, from a closed terminal, from a machine that is reclaimed.
_SIGNALS = (signal.SIGINT, signal.SIGHUP, signal.SIGTERM)
# jax makes all processes agree on one number: the one after the highest that a process
# has asked for. Steps of a resumed run start anywhere, so the questions are counted.
_questions = itertools.count()


class Preempted(KeyboardInterrupt):
  """The run was asked to stop and has saved; the message says how to continue it."""

  def __init__(self, message: str, number: int):
    super().__init__(message)
    self.exit_code = 128 + number  # as a shell reports a signal


class Preemption:
  """Stops a run after the current step when Ctrl-C, SIGTERM or SIGHUP comes.

  A second signal stops at once. Under nohup SIGHUP stays ignored. Use it as a context
  manager and ask `requested` after each step; `signal` is the one that came, or None.

  Several processes stop after the same step, whichever of them got the signal, even
  before the first step. A signal that comes while data are opened or a checkpoint is
  restored stops them at the first step; there a second Ctrl-C stops at once, a second
  SIGTERM does not. Python delivers signals to its main thread only: in another thread
  this does nothing.
  """

  def __init__(self):
    self.signal: int | None = None
    self._several = jax.process_count() > 1
    self._agreed = False
    self._before = {}

  def __enter__(self) -> 'Preemption':
    if threading.current_thread() is threading.main_thread():
      # With several processes jax handles SIGTERM, and passes it on to all.
      for number in _SIGNALS[:2] if self._several else _SIGNALS:
        if (before := signal.getsignal(number)) != signal.SIG_IGN:
          self._before[number] = before
          signal.signal(number, self._handle)
    self.requested()
    return self

  def __exit__(self, *error) -> None:
    self._restore()

  def requested(self) -> int | None:
    """The signal to stop for now, or None; all processes ask after each step."""
    if not self._several:
      return self.signal
    if multihost_utils.reached_preemption_sync_point(next(_questions)):
      self._agreed = True
    return (self.signal or signal.SIGTERM) if self._agreed else None

  def _handle(self, number, frame) -> None:
    self.signal = number
    self._restore()
    if self._several:
      signal.raise_signal(signal.SIGTERM)
    _LOG.info(
      '\nStopping after this step (compiling it may take a minute); a second signal'
      ' stops at once, without saving.'
    )

  def _restore(self) -> None:
    for number, handler in self._before.items():
      signal.signal(number, handler)
    self._before = {}
