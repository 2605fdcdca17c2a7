"""Errors that a user can correct, and errors that a new start may not meet again."""

import contextlib
import errno
import os
import re
from collections.abc import Iterator


class UserError(ValueError):
  """An error that the user can correct: one line says what is wrong and what to do.

  Scripts show it without a traceback, and any other exception with one.
  """


class MissingFileError(FileNotFoundError, UserError):
  """A file or folder that the user named does not exist."""


class StorageError(OSError, UserError):
  """A folder that the user named cannot be written or read: full, read-only, ..."""


class LateProcessError(TimeoutError, UserError):
  """Another process of the run did not join in time."""


class NonFiniteLossError(FloatingPointError, UserError):
  """The loss became nan or infinite."""


# The exit status after a transient error: EX_TEMPFAIL of sysexits.h.
EXIT_RETRYABLE = 75

# Errors of the network, or of a machine with too little of something. Not EIO: reading
# a bad sector fails each time.
_TRANSIENT = frozenset(
  (
    *(errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.EINTR),
    *(errno.EMFILE, errno.ENFILE, errno.ENOMEM),
    *(errno.ECONNRESET, errno.ECONNABORTED, errno.ECONNREFUSED),
    *(errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTDOWN, errno.EHOSTUNREACH),
  )
)
# How jax reports that another process cannot be reached.
_LOST_PEER = re.compile(
  r'\b(UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED)\b|Gloo|Connection (closed|reset) by peer'
  r'|remote process exited'  # NCCL
)


def is_transient(error: BaseException | None) -> bool:
  """Whether an error, or its cause, may not occur when the run is started again."""
  while error is not None:
    of_system = isinstance(error, OSError) and error.errno in _TRANSIENT
    of_jax = type(error).__name__ in ('JaxRuntimeError', 'XlaRuntimeError')
    lost_peer = of_jax and _LOST_PEER.search(str(error))
    if of_system or lost_peer or isinstance(error, TimeoutError):
      return True
    error = error.__cause__
  return False


def is_of_storage(error: OSError) -> bool:
  """Whether an error comes from the storage itself and not from one file on it."""
  return is_transient(error) or error.errno in (errno.EIO, errno.EACCES, errno.EPERM)


@contextlib.contextmanager
def storage_errors(path: str | os.PathLike) -> Iterator[None]:
  """Raises an OSError as a StorageError; `path` is the folder that the user named."""
  try:
    yield
  except UserError:
    raise
  except OSError as error:
    reason = error.strerror or str(error)
    raise StorageError(error.errno, reason, str(error.filename or path)) from error
