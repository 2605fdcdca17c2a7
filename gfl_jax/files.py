"""Files: written as a whole, appended to, locked, read as JSON; checks of folders."""

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

# What reading a file of JSON raises whose content is not as expected.
MALFORMED = (
  *(json.JSONDecodeError, UnicodeDecodeError),
  *(KeyError, TypeError, AttributeError),
)


def atomic_write(path: str | os.PathLike, content: bytes | str) -> None:
  """Writes a file so that a reader sees the old content or the new, never a part.

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
  """A file to which lines are added, even if the disk is full for a while."""

  def __init__(self, path: str | os.PathLike):
    """Opens a file and keeps its content, or makes it."""
    self._file = open(path, 'ab', buffering=0)
    self._unwritten = b''

  def write(self, text: str) -> OSError | None:
    """Appends text as UTF-8.

    Returns:
      The error if the disk is full; what could not be written is kept and written first
      at the next call.
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


# etils.epath, with which orbax and TFDS read folders, takes * ? [ \ for a pattern, and
# /gs, /s3, ... for a bucket, as tensorstore does gs:. Both need UTF-8.
_UNUSABLE = re.compile(
  r'[*?\[\\\udc80-\udcff]|^/(?:gs|s3|az|hf)(?=/|$)|(?<=/)gs:(?=/|$)'
)


def check_folder(path: str | os.PathLike, name: str) -> None:
  """Raises a UserError if orbax and TFDS cannot use folders of such a path.

  Args:
    path: of the folder, which need not exist.
    name: of the flag or the field of the config.
  """
  absolute = str(Path(path).absolute())
  if found := sorted(set(_UNUSABLE.findall(absolute))):
    raise UserError(
      f'{name}={path}: the absolute path is {absolute}, and orbax and TFDS cannot use a'
      f' path with {" or ".join(found)}: give another folder, or a link to this one'
    )


@contextlib.contextmanager
def lock(path: str | os.PathLike, *, wait: bool) -> Iterator[bool]:
  """Locks a file against other processes, on all hosts that share its folder.

  The system releases it when the process ends, even if it is killed. The file stays and
  names the last holder, see `holder`. On a file system without locks a warning says so.

  Args:
    path: of the file; its folder is made if missing.
    wait: until it is free; otherwise the value is False if another process holds it.

  Raises:
    StorageError: the file cannot be made.
  """
  path = Path(path)
  with storage_errors(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open('a')  # keeps what another holder has written
  with file:
    held = True
    try:
      fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
      held = False
    except OSError as error:
      if error.errno not in _NO_LOCKS:
        raise
      text = '%s: this file system has no locks (%s). Do not start a command twice.'
      _LOG.warning(text, path, error.strerror)
    if held:
      now = time.strftime('%Y-%m-%d %H:%M:%S %z')
      known = {'host': socket.gethostname(), 'pid': os.getpid(), 'since': now}
      with contextlib.suppress(OSError):  # a full disk
        file.truncate(0)
        file.write(json.dumps(known))
        file.flush()
    yield held


def holder(path: str | os.PathLike) -> str:
  """Names the process that holds a `lock`."""
  try:
    known = read_json(path)
    return f'process {known["pid"]} on {known["host"]}, since {known["since"]}'
  except (*MALFORMED, OSError):
    return 'another process'


def read_json(path: str | os.PathLike) -> dict[str, Any]:
  """The content of a file; empty if the file does not exist."""
  path = Path(path)
  return json.loads(path.read_text()) if path.exists() else {}


def read_json_lines(path: str | os.PathLike) -> list[dict[str, Any]]:
  """The lines of a file, as of metrics.jsonl; none if the file does not exist.

  Lines that are not JSON are left out: a process that is killed, or writes at this
  moment, leaves half a line.
  """
  path = Path(path)
  text = path.read_text(encoding='utf-8', errors='replace') if path.exists() else ''
  lines = []
  for line in text.splitlines():
    with contextlib.suppress(json.JSONDecodeError):
      lines.append(json.loads(line))
  return lines


def write_json_lines(path: str | os.PathLike, lines: Iterable[dict[str, Any]]) -> None:
  """Writes a file that `read_json_lines` reads, by `atomic_write`."""
  atomic_write(path, ''.join(json.dumps(line) + '\n' for line in lines))
