"""A save that failed: whether the storage refused it, and the reason in a few words."""

import logging
import os
import re
from collections.abc import Sequence

# The problem of a host that knows only that it waited for the others without success.
OTHER_HOST = 'an error on another host'

# How tensorstore, which writes the arrays, adds an operating system's error to a text.
_SYSTEM_ERROR = re.compile(r"os_error_code='?(\d+)")


def is_storage_error(error: object) -> bool:
  """Whether a save failed because it could not be written, as on a full disk."""
  of_system = isinstance(error, OSError) or _SYSTEM_ERROR.search(str(error))
  return bool(of_system) or is_timeout(error)


def is_timeout(error: object) -> bool:
  """Whether an error says only that this host waited for another one without success.

  Hosts see this of a save that failed on another one, and often on themselves.
  """
  of_wait = isinstance(error, TimeoutError) and error.errno is None
  return of_wait or 'DEADLINE_EXCEEDED' in str(error)


def reason(error: object) -> str:
  """The error in a few words, as 'No space left on device'."""
  if of_system := _SYSTEM_ERROR.search(str(error)):
    return os.strerror(int(of_system[1]))
  text = getattr(error, 'strerror', None) or str(error) or repr(error)
  return text.splitlines()[0]


def by_host(problems: Sequence[str]) -> str:
  """One text of the problems of all hosts; empty ones and `OTHER_HOST` are left out."""
  known = [
    f'process {number}: {problem}' if len(problems) > 1 else problem
    for number, problem in enumerate(problems)
    if problem not in ('', OTHER_HOST)
  ]
  return '; '.join(known) or OTHER_HOST


class StorageErrorFilter(logging.Filter):
  """Keeps tracebacks of storage errors out of a log: `Checkpoints` reports them.

  Attributes:
    error: the last one of this host.
  """

  def __init__(self):
    super().__init__()
    self.error: BaseException | None = None

  def filter(self, record: logging.LogRecord) -> bool:
    """False for a record with such a traceback."""
    error = record.exc_info[1] if record.exc_info else None
    if error is None or not is_storage_error(error):
      return True
    if not is_timeout(error):
      self.error = error
    return False
