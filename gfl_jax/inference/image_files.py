"""The image files of a command line, each with a unique name."""

import functools
import glob
import itertools
import logging
import os
import pathlib
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from PIL import Image

from gfl_jax.errors import MissingFileError, UserError

_LOG = logging.getLogger(__name__)
# Formats that Pillow recognizes but cannot decode without other programs.
_NO_PICTURES = {'BUFR', 'EPS', 'GRIB', 'HDF5', 'MPEG', 'WMF'}
PICTURE_SUFFIX = '.jpg'  # of the picture drawn for each image


class ImageFile(NamedTuple):
  """One image of the command line.

  Attributes:
    path: of the file.
    name: path without suffix, relative to the given folder; unique in a list, even if
      case is ignored. A folder 'x.jpg' becomes 'x.jpg_', because 'x.jpg' is the picture
      of an image 'x'.
  """

  path: pathlib.Path
  name: str


def find(inputs: Iterable[str], *, leave_out: str | os.PathLike) -> list[ImageFile]:
  """The images of files, folders and patterns, each file once.

  A file that is given itself is taken in any case. Below a folder all files are taken
  that have the suffix or the content of an image and are not hidden; the log names the
  others. In a pattern, such as 'photos/**/*.jpg', leading folders that exist are taken
  literally.

  Args:
    inputs: files, folders, or patterns of either.
    leave_out: a folder whose files are not taken as part of another folder.

  Raises:
    ValueError: no inputs, or one without an image.
    FileNotFoundError: an input that does not exist.
  """
  inputs = list(inputs)
  if not inputs:
    raise UserError('no images given: name files, folders or quoted patterns')
  left_out = pathlib.Path(leave_out).resolve()
  found: dict[pathlib.Path, ImageFile] = {}
  names: set[str] = set()
  for text in inputs:
    files = list(_files(text, left_out))
    if not files:
      raise UserError(f'no image in {text}')
    for path, name in files:
      if path.resolve() not in found:
        found[path.resolve()] = ImageFile(path, _unused(name, names))
  return list(found.values())


def _files(text: str, left_out: pathlib.Path) -> Iterator[tuple[pathlib.Path, str]]:
  """Paths with names that may not be unique yet."""
  known = text  # the longest leading part that exists
  while known and not os.path.exists(known):
    known = os.path.dirname(known)
  pattern = glob.escape(known) + text[len(known) :]
  paths = [text] if os.path.exists(text) else sorted(glob.glob(pattern, recursive=True))
  if not paths:
    raise MissingFileError(
      f'no file matches {text!r}' if glob.has_magic(text) else f'{text} does not exist'
    )
  for path in map(pathlib.Path, paths):
    if not path.is_dir():
      yield path, path.stem
      continue
    below, others, hidden = _below(path)
    for inside in below:
      file = path / inside
      if file.resolve().is_relative_to(left_out):
        continue
      if not _is_image(file):
        others.append(inside.as_posix())
        continue
      folders = (
        f'{part}_' if part.lower().endswith(PICTURE_SUFFIX) else part
        for part in inside.parent.parts
      )
      yield file, pathlib.PurePosixPath(*folders, file.stem).as_posix()
    for kind, names in (('no images', others), ('hidden', hidden)):
      if names:
        shown = ', '.join(names[:3]) + (', ...' if len(names) > 3 else '')
        _LOG.info('%s: skipped %d files, %s: %s', path, len(names), kind, shown)


def _below(folder: pathlib.Path) -> tuple[list[pathlib.Path], list[str], list[str]]:
  """Paths below a folder and relative to it: files, unreadable folders, hidden ones.

  Links to folders are followed, but no folder is entered twice.
  """
  files, unreadable, hidden = [], [], []
  entered: set[str] = set()
  failed = lambda error: unreadable.append(os.path.relpath(error.filename, folder))
  for root, folders, names in os.walk(folder, followlinks=True, onerror=failed):
    real, inside = os.path.realpath(root), pathlib.Path(root).relative_to(folder)
    if real in entered:
      folders.clear()
      continue
    entered.add(real)
    hidden += [(inside / n).as_posix() for n in folders + names if n.startswith('.')]
    files += [inside / name for name in names if not name.startswith('.')]
    folders[:] = sorted(name for name in folders if not name.startswith('.'))
  return sorted(files), unreadable, hidden


@functools.cache
def _suffixes() -> frozenset[str]:
  Image.init()
  known = Image.registered_extensions().items()
  return frozenset(
    suffix for suffix, kind in known if kind in Image.OPEN and kind not in _NO_PICTURES
  )


def _is_image(file: pathlib.Path) -> bool:
  """Whether a file has the suffix of an image, even a damaged one, or its content."""
  if not file.is_file():  # a pipe, a link to nothing
    return False
  if file.suffix.lower() in _suffixes():
    return True
  try:
    with Image.open(file) as image:
      return image.format not in _NO_PICTURES
  except Exception:  # Pillow raises many types
    return False


def _unused(name: str, names: set[str]) -> str:
  """The first of name, name-2, name-3, ... that is not in `names`; adds it to them."""
  numbered = (f'{name}-{number}' for number in itertools.count(2))
  free = next(x for x in itertools.chain([name], numbered) if x.lower() not in names)
  names.add(free.lower())
  return free
