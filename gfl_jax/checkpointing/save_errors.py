"""A save that failed: whether its disk was to blame, how to say it, what it leaves."""

import logging
import re
from collections.abc import Sequence

# A problem of a host that knows only that the others were waited for in vain.
ELSEWHERE = 'an error on another host'

# How tensorstore, which writes the arrays, marks an error of the operating system.
_OF_SYSTEM = 'os_error_code='
# What a host sees of a save that has failed on another one; and, as often, on itself.
_OF_OTHER_HOST = 'DEADLINE_EXCEEDED'


def is_of_store(error: object) -> bool:
  """Whether a save failed because it could not be written: on a full disk, say."""
  text = str(error)
  return isinstance(error, OSError) or _OF_SYSTEM in text or is_of_other_host(error)


def is_of_other_host(error: object) -> bool:
  """Whether it says no more than that the others were waited for in vain."""
  of_wait = isinstance(error, TimeoutError) and error.errno is None
  return of_wait or _OF_OTHER_HOST in str(error)


def reason(error: object) -> str:
  """An error of the store in a few words."""
  by_system = re.search(rf'([^:]+) \[{_OF_SYSTEM}', str(error))
  if by_system:
    return by_system[1].strip()
  told = getattr(error, 'strerror', None) or str(error) or repr(error)
  return told.splitlines()[0]


class Untold(logging.Filter):
  """Keeps tracebacks of the store's errors out of a log: a line of ours tells them.

  Attributes:
    error: the last that was kept out and is of this host.
  """

  def __init__(self):
    super().__init__()
    self.error: BaseException | None = None

  def filter(self, record: logging.LogRecord) -> bool:
    """False for such a traceback."""
    error = record.exc_info[1] if record.exc_info else None
    if error is None or not is_of_store(error):
      return True
    if not is_of_other_host(error):
      self.error = error
    return False


def by_host(problems: Sequence[str]) -> str:
  """The problems of the hosts that know theirs, one after the other."""
  known = [
    f'process {number}: {problem}' if len(problems) > 1 else problem
    for number, problem in enumerate(problems)
    if problem not in ('', ELSEWHERE)
  ]
  return '; '.join(known) or ELSEWHERE
