"""Prints the last line of a process that is killed or aborted and cannot print it.

When the coordinator ends, jax aborts the other processes at once, from C++, with a long
message that does not say what to do. A shell that waits for the end of a pipe survives
that, and a SIGKILL.
"""

import atexit
import contextlib
import subprocess

# It keeps the last line that it received. The pipe ends when this process ends.
_SCRIPT = 'while read -r line; do text=$line; done; [ -z "$text" ] || echo "$text" >&2'


class ExitReporter:
  """A shell beside this process."""

  def __init__(self, text: str):
    """Starts the shell; `text` as in `set_text`."""
    self._shell = subprocess.Popen(
      ['sh', '-c', _SCRIPT],
      stdin=subprocess.PIPE,
      text=True,
      start_new_session=True,  # so that Ctrl-C does not reach it
    )
    self.set_text(text)
    atexit.register(self.cancel)

  def set_text(self, text: str) -> None:
    """Sets the line to print if this process ends without a message of its own."""
    with contextlib.suppress(OSError, ValueError):  # the shell has ended
      print(text, file=self._shell.stdin, flush=True)

  def cancel(self) -> None:
    """Prints nothing: this process ends normally or reports its own end."""
    self.set_text('')
    with contextlib.suppress(OSError, ValueError):
      self._shell.communicate()
