"""A run that is asked to stop saves first."""

import logging
import signal
import threading

import jax

_LOG = logging.getLogger(__name__)
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(KeyboardInterrupt):
  """The run was asked to stop and has saved; its message says how to go on."""

  def __init__(self, message: str, number: int):
    super().__init__(message)
    self.exit_code = 128 + number  # as the shell has it for a signal


class StopRequests:
  """Takes Ctrl-C and SIGTERM as a wish to stop after the step; a second stops at once.

  Use it as a context manager. Several hosts would have to agree on the step, and
  Python takes signals in its main thread alone: elsewhere it does nothing.
  """

  def __init__(self):
    self.number: int | None = None
    """The signal that came, or None."""
    self._before = {}

  def __enter__(self) -> 'StopRequests':
    in_main_thread = threading.current_thread() is threading.main_thread()
    if in_main_thread and jax.process_count() == 1:
      self._before = {number: signal.getsignal(number) for number in _SIGNALS}
      for number in _SIGNALS:
        signal.signal(number, self._take)
    return self

  def __exit__(self, *error) -> None:
    self._restore()

  def _take(self, number, frame) -> None:
    self.number = number
    self._restore()
    _LOG.info(
      '\nStopping after this step (a step that is being compiled may take a minute);'
      ' once more stops at once, without saving.'
    )

  def _restore(self) -> None:
    for number, handler in self._before.items():
      signal.signal(number, handler)
    self._before = {}
