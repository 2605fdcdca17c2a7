"""A run that is asked to stop saves first."""

import itertools
import logging
import signal
import threading

import jax
from jax.experimental import multihost_utils

_LOG = logging.getLogger(__name__)
# Of a user, of a machine that is taken away, of a terminal that is closed.
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# Jax agrees on the number after the last that any process asked for, and on no other:
# a SIGTERM that comes before the first question must find that the next is it. So they
# are counted here; the steps of a run that goes on begin anywhere.
_questions = itertools.count()


class Preempted(KeyboardInterrupt):
  """The run was asked to stop and has saved; its message says how to go on."""

  def __init__(self, message: str, number: int):
    super().__init__(message)
    self.exit_code = 128 + number  # as the shell has it for a signal


class Preemption:
  """Takes Ctrl-C, SIGTERM and SIGHUP as a wish to stop after the step; a second of them
  stops at once. Under nohup SIGHUP stays ignored.

  Use it as a context manager and ask `reached` after each step. Several processes stop
  after the same step, whichever of them was asked, be it before the first step, while
  it opened data or restored; there a second Ctrl-C, but no second SIGTERM, stops at
  once. Python takes signals in its main thread alone: elsewhere this does nothing.
  """

  def __init__(self):
    """Nothing is taken yet."""
    self.signal: int | None = None
    """The signal that came, or None."""
    self._several = jax.process_count() > 1
    self._agreed = False
    self._before = {}

  def __enter__(self) -> 'Preemption':
    if threading.current_thread() is threading.main_thread():
      # Among several processes SIGTERM is jax's, which tells all of them.
      before = {number: signal.getsignal(number) for number in _SIGNALS}
      if self._several:
        del before[signal.SIGTERM]
      self._before = {n: h for n, h in before.items() if h != signal.SIG_IGN}
      for number in self._before:
        signal.signal(number, self._take)
    self.reached()
    return self

  def __exit__(self, *error) -> None:
    self._restore()

  def reached(self) -> int | None:
    """The signal for which to stop now, or None; ask it after each step, on all."""
    if not self._several:
      return self.signal
    if multihost_utils.reached_preemption_sync_point(next(_questions)):
      self._agreed = True
    return (self.signal or signal.SIGTERM) if self._agreed else None

  def _take(self, number, frame) -> None:
    self.signal = number
    self._restore()
    if self._several:
      signal.raise_signal(signal.SIGTERM)
    _LOG.info(
      '\nStopping after this step (a step that is being compiled may take a minute);'
      ' once more stops at once, without saving.'
    )

  def _restore(self) -> None:
    for number, handler in self._before.items():
      signal.signal(number, handler)
    self._before = {}
