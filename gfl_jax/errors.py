"""Errors of the user, and which errors may be gone when a run is started again."""

import contextlib
import errno
import os
import re
from collections.abc import Iterator


class UserError(ValueError):
  """What a user can mend: one line says what is wrong and what to do.

  Scripts show it without a traceback; any other exception shows where it came from.
  """


class MissingFileError(FileNotFoundError, UserError):
  """A file or folder that the user named is not there."""


class StorageError(OSError, UserError):
  """A folder that the user named cannot be written or read: full, read-only, ..."""


class LateProcessError(TimeoutError, UserError):
  """Another process of the run did not come in time."""


class NonFiniteLossError(FloatingPointError, UserError):
  """The loss became nan or infinite."""


# The status of a process that ended with a transient error: EX_TEMPFAIL of sysexits.h.
EXIT_RETRYABLE = 75

# Of the network or of a machine that is short of something. Not EIO: a bad sector has
# it at each try.
_TRANSIENT = frozenset(
  (
    *(errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.EINTR),
    *(errno.EMFILE, errno.ENFILE, errno.ENOMEM),
    *(errno.ECONNRESET, errno.ECONNABORTED, errno.ECONNREFUSED),
    *(errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTDOWN, errno.EHOSTUNREACH),
  )
)
# How jax tells that another process, or the way to it, is gone.
_LOST_PEER = re.compile(
  r'\b(UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED)\b|Gloo|Connection (closed|reset) by peer'
  r'|remote process exited'  # NCCL
)
_OF_JAX = ('JaxRuntimeError', 'XlaRuntimeError')


def is_transient(error: BaseException | None) -> bool:
  """Whether an error, or what caused it, may be gone when the run is started again."""
  while error is not None:
    by_system = isinstance(error, OSError) and error.errno in _TRANSIENT
    lost_peer = type(error).__name__ in _OF_JAX and _LOST_PEER.search(str(error))
    if by_system or lost_peer or isinstance(error, TimeoutError):
      return True
    error = error.__cause__
  return False


def is_of_storage(error: OSError) -> bool:
  """Whether an error is of the disk or the way to it, not of the one file."""
  return is_transient(error) or error.errno in (errno.EIO, errno.EACCES, errno.EPERM)


@contextlib.contextmanager
def storage_errors(path: str | os.PathLike) -> Iterator[None]:
  """Makes a StorageError of what the system says of a folder that the user named."""
  try:
    yield
  except OSError as error:
    if isinstance(error, UserError):
      raise
    reason = error.strerror or str(error)
    raise StorageError(error.errno, reason, str(error.filename or path)) from error
