"""Files of a folder, or members of a zip, which is checked and read in place."""

import pathlib
import stat
import zipfile
import zlib

from gfl_jax.errors import MissingFileError, UserError

MAX_RATIO = 200  # unpacked size to packed size; COCO's json has 10
SMALL = 2**20  # bytes; smaller members may have any ratio
# What zipfile raises for an archive that is cut off, changed, or of an unknown kind.
_DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError)


class Folder:
  """The files of a folder."""

  def __init__(self, root: pathlib.Path):
    self._root = root

  def read(self, name: str) -> bytes:
    """The content of a file; raises an OSError if it cannot be read."""
    return (self._root / name).read_bytes()

  def state(self, name: str) -> tuple[int, int] | None:
    """(size, time of change), to notice changes; None if there is no such file."""
    try:
      found = (self._root / name).stat()
    except (OSError, ValueError):  # ValueError: a name that no file can have
      return None
    return found.st_size, found.st_mtime_ns

  def where(self, name: str) -> str:
    """The file's path, for messages."""
    return str(self._root / name)


class Archive:
  """The members in one folder of a zip. Nothing is unpacked; reading is thread-safe."""

  def __init__(self, path: pathlib.Path, folder: str):
    """Reads the archive's table of contents.

    Raises:
      ValueError: not a complete zip; members that overlap; a member that has an unsafe
        name, is not a plain file, is encrypted, occurs twice, or unpacks to more than
        MAX_RATIO times its size.
    """
    self._path, self._folder = path, folder
    try:
      self._zip = zipfile.ZipFile(path)
    except (*_DAMAGED, OSError) as error:
      raise UserError(
        f'{path} is damaged or not a complete zip ({error}): download it again'
      ) from error
    self._members = {}
    for member in self._zip.infolist():
      twice = member.filename in self._members
      if problem := 'occurs twice' if twice else _problem(member):
        raise UserError(f'{path}: the member {member.orig_filename!r} {problem}')
      self._members[member.filename] = member
    packed = sum(member.compress_size for member in self._members.values())
    if packed > path.stat().st_size:
      raise UserError(f'{path}: its members overlap')

  def read(self, name: str) -> bytes:
    """The content of a member; raises a UserError if it is missing or damaged."""
    try:
      return self._zip.read(self._members[f'{self._folder}/{name}'])
    except KeyError as error:
      raise MissingFileError(f'{self.where(name)} is missing') from error
    except _DAMAGED as error:
      raise UserError(f'{self.where(name)} is damaged: {error}') from error

  def state(self, name: str) -> tuple[int, int] | None:
    """(size, CRC-32), to notice changes; None if there is no such member."""
    member = self._members.get(f'{self._folder}/{name}')
    return None if member is None else (member.file_size, member.CRC)

  def where(self, name: str) -> str:
    """The paths of the archive and of the member, for messages."""
    return f'{self._path}: {self._folder}/{name}'


Files = Folder | Archive


def find(root: pathlib.Path, archive: str, folder: str) -> Files | None:
  """The folder of an archive below root, else the plain folder, else None."""
  if (root / archive).exists():
    return Archive(root / archive, folder)
  return Folder(root / folder) if (root / folder).is_dir() else None


def _problem(member: zipfile.ZipInfo) -> str:
  """Why a member is refused; empty if it is not."""
  name = member.orig_filename  # zipfile cuts its own at a NUL
  parts = name.split('/')
  if not name.isprintable() or '\\' in name or ':' in parts[0]:
    return 'has a name that some systems do not allow'
  if '..' in parts or name.startswith('/'):
    return 'has a name that leads out of the archive'
  kind = stat.S_IFMT(member.external_attr >> 16)
  if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
    return 'is a link or a device'
  if member.flag_bits & 0x1:
    return 'is encrypted'
  large = member.file_size > max(SMALL, MAX_RATIO * member.compress_size)
  return f'unpacks to over {MAX_RATIO} times its size' if large else ''
