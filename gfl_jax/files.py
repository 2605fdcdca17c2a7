"""Files that a reader sees whole, JSON that may not be whole, locks, folders' names."""

import contextlib
import errno
import fcntl
import json
import logging
import os
import re
import socket
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from gfl_jax.errors import UserError, storage_errors

_LOG = logging.getLogger(__name__)
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


# What a file raises that is not what was written, where its content is taken apart.
MALFORMED = (
  json.JSONDecodeError,
  UnicodeDecodeError,
  KeyError,
  TypeError,
  AttributeError,
)


def atomic_write(path: str | os.PathLike, content: bytes | str) -> None:
  """Writes a file so that a reader sees the old one or the new one, never a part.

  The content goes to PATH.part first, which a killed process may leave behind.

  Args:
    path: of the file; its folder must exist.
    content: text is written as UTF-8.
  """
  path = Path(path)
  part = path.with_name(path.name + '.part')
  part.write_bytes(content.encode() if isinstance(content, str) else content)
  part.replace(path)


class AppendLog:
  """A file that lines are added to, though the disk may be full for a while."""

  def __init__(self, path: str | os.PathLike):
    """Opens a file, or makes it; what it holds stays."""
    self._file = open(path, 'ab', buffering=0)
    self._unwritten = b''

  def write(self, text: str) -> OSError | None:
    """Writes text (UTF-8) to the disk, after what it refused before.

    Returns:
      The error, if the disk refuses it: what could not be written is kept for the next
      call.
    """
    self._unwritten += text.encode()
    try:
      while self._unwritten:
        count = self._file.write(self._unwritten)
        self._unwritten = self._unwritten[count:]
    except OSError as error:
      return error
    return None

  def close(self) -> OSError | None:
    """Closes the file; returns the error if something could not be written."""
    error = self.write('')
    self._file.close()
    return error


# What patterns are made of: epath, through which orbax and TFDS read folders, takes a
# path that holds one for a pattern, and finds nothing or another folder. It takes /s3
# and the like, and tensorstore gs:, for a bucket; and neither can what is not UTF-8.
_UNUSABLE = re.compile(
  r'[*?\[\\\udc80-\udcff]|^/(?:gs|s3|az|hf)(?=/|$)|(?<=/)gs:(?=/|$)'
)


def check_folder(path: str | os.PathLike, name: str) -> None:
  """Raises a UserError if libraries cannot work below a folder of such a path.

  Args:
    path: of the folder, which need not exist.
    name: of the flag or the field of the config.
  """
  whole = str(Path(path).absolute())
  found = sorted(set(_UNUSABLE.findall(whole)))
  if found:
    raise UserError(
      f'{name}={path}: the whole path is {whole}, and orbax and TFDS cannot work in a'
      f' folder whose path holds {" or ".join(found)}: give another, or a link to it'
    )


@contextlib.contextmanager
def lock(path: str | os.PathLike, *, wait: bool) -> Iterator[bool]:
  """Holds a file against other processes, of all hosts that share its folder.

  The system frees it when its process ends, however it ends. The file stays: it says
  who holds it, or did, see `holder`. Where a file system has no locks, a warning says
  so.

  Args:
    path: of the file; its folder is made if missing.
    wait: until it is free; otherwise the value is False if another process holds it.

  Raises:
    StorageError: it cannot be made.
  """
  path = Path(path)
  with storage_errors(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open('a')  # another one's content stays
  with file:
    held = True
    try:
      fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
      held = False
    except OSError as error:
      if error.errno not in _NO_LOCKS:
        raise
      _LOG.warning('%s: no locks here (%s). Start nothing twice.', path, error.strerror)
    if held:
      now = time.strftime('%Y-%m-%d %H:%M:%S %z')
      known = {'host': socket.gethostname(), 'pid': os.getpid(), 'since': now}
      with contextlib.suppress(OSError):  # a full disk
        file.truncate(0)
        file.write(json.dumps(known))
        file.flush()
    yield held


def holder(path: str | os.PathLike) -> str:
  """Who holds a `lock`, in a user's words."""
  try:
    known = read_json(path)
    return f'process {known["pid"]} on {known["host"]}, since {known["since"]}'
  except (ValueError, KeyError, TypeError, OSError):
    return 'another process'


def read_json(path: str | os.PathLike) -> dict[str, Any]:
  """A file's content, empty if it does not exist."""
  path = Path(path)
  return json.loads(path.read_text()) if path.exists() else {}


def read_json_lines(path: str | os.PathLike) -> list[dict[str, Any]]:
  """The lines of a file in its order, as metrics.jsonl; none if there is no file.

  Lines that are not whole JSON are left out: a run that is killed, or is writing now,
  leaves half a line.
  """
  path = Path(path)
  text = path.read_text(encoding='utf-8', errors='replace') if path.exists() else ''
  lines = []
  for line in text.splitlines():
    with contextlib.suppress(json.JSONDecodeError):
      lines.append(json.loads(line))
  return lines


def write_json_lines(path: str | os.PathLike, lines: Iterable[dict[str, Any]]) -> None:
  """Writes what `read_json_lines` reads, whole."""
  atomic_write(path, ''.join(json.dumps(line) + '\n' for line in lines))
