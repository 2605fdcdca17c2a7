"""Says a last line for a process that cannot: killed, or aborted by jax.

When the coordinator is gone, jax ends the others at once, in C++ and with a page of
its own that never says what to do. A shell that waits for the end of a pipe outlives
that, and a SIGKILL.
"""

import atexit
import contextlib
import subprocess

_OVER = 'over'
# It keeps the last line it was given; when the pipe ends, that was this process's end.
_SCRIPT = (
  f'while read -r line; do text=$line; done; [ "$text" = {_OVER} ] || echo "$text" >&2'
)


class ExitReporter:
  """A shell beside this process."""

  def __init__(self, text: str):
    """Starts it; `text` as in `expect`."""
    self._shell = subprocess.Popen(
      ['sh', '-c', _SCRIPT],
      stdin=subprocess.PIPE,
      text=True,
      start_new_session=True,  # Ctrl-C is not for it
    )
    self.expect(text)
    atexit.register(self.dismiss)

  def expect(self, text: str) -> None:
    """What it is to say, in one line, if this process ends without a word."""
    with contextlib.suppress(OSError, ValueError):  # it is gone, or dismissed
      print(text, file=self._shell.stdin, flush=True)

  def dismiss(self) -> None:
    """It has nothing to say: this process ends in order, or says why itself."""
    self.expect(_OVER)
    with contextlib.suppress(OSError, ValueError):
      self._shell.communicate()
