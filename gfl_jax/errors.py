"""Which errors a user can mend, and which may be gone by themselves."""

import errno


class UserError(ValueError):
  """What a user can mend: one line says what is wrong and what to do.

  Scripts show it without a traceback; any other exception shows where it came from.
  """


class MissingFileError(FileNotFoundError, UserError):
  """A file or folder that the user named is not there."""


# What they say is what is wrong and what to do: no traceback adds to it.
FORESEEN = (ValueError, OSError, FloatingPointError)

# The status of a process that ended for what may be gone when it is started again:
# EX_TEMPFAIL of sysexits.h. Other errors end it with 1, and come again.
AGAIN_STATUS = 75

# Of the machine or the network, not of a file.
_PASSING = frozenset(
  (
    *(errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.EINTR),
    *(errno.EMFILE, errno.ENFILE, errno.ENOMEM),
  )
)


def is_passing(error: BaseException | None) -> bool:
  """Whether an error, or what caused it, may not come again: a disk that fails once."""
  while error is not None:
    of_moment = isinstance(error, OSError) and error.errno in _PASSING
    if of_moment or isinstance(error, TimeoutError):
      return True
    error = error.__cause__
  return False


def is_worth_another_start(error: BaseException) -> bool:
  """Whether a run that ended with it may go on when it is started again."""
  return not isinstance(error, FORESEEN) or is_passing(error)
