"""Files of a folder, or read in place from a zip that is what it says."""

import pathlib
import stat
import zipfile
import zlib
from typing import Protocol

from gfl_jax.errors import MissingFileError, UserError

MAX_RATIO = 200  # of a member's size to what it takes in the archive; json has 10
SMALL = 2**20  # bytes; smaller members may be of any ratio
# What zipfile raises for an archive that is cut off, changed, or of an unknown kind.
_DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError)


class Files(Protocol):
  """Named files."""

  def read(self, name: str) -> bytes:
    """The content of a file.

    Raises:
      FileNotFoundError: there is none of that name.
      ValueError, OSError: it cannot be read.
    """
    ...

  def state(self, name: str) -> tuple[int, int] | None:
    """Two numbers that differ if the content does; None if there is no such file."""
    ...

  def where(self, name: str) -> str:
    """The file in a user's words."""
    ...


class Folder(Files):
  """The files of a folder; their state is size and time of change."""

  def __init__(self, root: pathlib.Path):
    self._root = root

  def read(self, name):
    return (self._root / name).read_bytes()

  def state(self, name):
    try:
      found = (self._root / name).stat()
    except (OSError, ValueError):  # a name that no file can have
      return None
    return found.st_size, found.st_mtime_ns

  def where(self, name):
    return str(self._root / name)


class Archive(Files):
  """The members of a zip in one of its folders; their state is size and CRC-32.

  Nothing is unpacked, and reading is thread-safe.
  """

  def __init__(self, path: pathlib.Path, folder: str):
    """Reads the archive's table of contents.

    Raises:
      ValueError: not a whole zip; a member whose name leads out of the archive, that
        is no plain file, is encrypted, there twice, or unpacks to more than MAX_RATIO
        times its size; members that overlap.
    """
    self._path, self._folder = path, folder
    try:
      self._zip = zipfile.ZipFile(path)
    except (*_DAMAGED, OSError) as error:
      raise UserError(
        f'{path} is damaged or not a whole zip ({error}): download it again'
      ) from error
    self._members = {}
    for member in self._zip.infolist():
      problem = _problem(member)
      if member.filename in self._members:
        problem = 'is there twice'
      if problem:
        raise UserError(f'{path}: the member {member.orig_filename!r} {problem}')
      self._members[member.filename] = member
    packed = sum(member.compress_size for member in self._members.values())
    if packed > path.stat().st_size:
      raise UserError(f'{path}: its members overlap')

  def read(self, name):
    try:
      return self._zip.read(self._members[f'{self._folder}/{name}'])
    except KeyError as error:
      raise MissingFileError(f'{self.where(name)} is missing') from error
    except _DAMAGED as error:
      raise UserError(f'{self.where(name)} is damaged: {error}') from error

  def state(self, name):
    member = self._members.get(f'{self._folder}/{name}')
    return None if member is None else (member.file_size, member.CRC)

  def where(self, name):
    return f'{self._path}: {self._folder}/{name}'


def find(root: pathlib.Path, archive: str, folder: str) -> Files | None:
  """A folder of an archive below root, or else the folder itself, or else None."""
  if (root / archive).exists():
    return Archive(root / archive, folder)
  return Folder(root / folder) if (root / folder).is_dir() else None


def _problem(member: zipfile.ZipInfo) -> str:
  """Why a member is refused; empty if it is not."""
  name = member.orig_filename  # zipfile cuts its own at a NUL
  parts = name.split('/')
  if not name.isprintable() or '\\' in name or ':' in parts[0]:
    return 'has a name that not every system can have'
  if '..' in parts or name.startswith('/'):
    return 'has a name that leads out of the archive'
  kind = stat.S_IFMT(member.external_attr >> 16)
  if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
    return 'is a link or a device'
  if member.flag_bits & 0x1:
    return 'is encrypted'
  large = member.file_size > max(SMALL, MAX_RATIO * member.compress_size)
  return f'unpacks to over {MAX_RATIO} times its size' if large else ''
