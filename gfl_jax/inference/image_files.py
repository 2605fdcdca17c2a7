"""The image files that a command line means, and a name of its own for each."""

import functools
import glob
import logging
import os
import pathlib
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from PIL import Image

from gfl_jax.errors import MissingFileError, UserError

_LOG = logging.getLogger(__name__)
# Formats whose files Pillow knows by their names, and cannot show by itself.
_NO_PICTURES = {'BUFR', 'EPS', 'GRIB', 'HDF5', 'MPEG', 'WMF'}
PICTURE_SUFFIX = '.jpg'  # of what is drawn for each


class ImageFile(NamedTuple):
  """One image of the command line.

  Attributes:
    path: of the file.
    name: relative path without a suffix, below a given folder as there; no two of a
      list are equal, not even where upper and lower case are the same. A folder that is
      called like a picture, 'x.jpg', is 'x.jpg_': 'x' with the suffix is not one.
  """

  path: pathlib.Path
  name: str


def find(inputs: Iterable[str], *, leave_out: str | os.PathLike) -> list[ImageFile]:
  """The images of files, folders and patterns, each file once.

  Args:
    inputs: files, whatever they are called; folders, of which all files below are taken
      that are called like an image or are one, and are not hidden, by name, while a
      line says what is passed over; patterns of either, as 'photos/**/*.jpg', where
      leading folders that exist are no pattern.
    leave_out: a folder, whose files are not taken as part of another.

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
  """Paths with the names that they would have if they were the only ones."""
  known = text  # the longest part at the front that exists
  while known and not os.path.exists(known):
    known = os.path.dirname(known)
  pattern = glob.escape(known) + text[len(known) :]
  paths = [text] if os.path.exists(text) else sorted(glob.glob(pattern, recursive=True))
  if not paths:
    raise MissingFileError(
      f'no file fits {text!r}' if glob.has_magic(text) else f'{text} does not exist'
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
    for kind, names in (('files are no images', others), ('are hidden', hidden)):
      if names:
        shown = ', '.join(names[:3]) + (', ...' if len(names) > 3 else '')
        _LOG.info('%s: %d %s, passed over: %s', path, len(names), kind, shown)


def _below(folder: pathlib.Path) -> tuple[list[pathlib.Path], list[str], list[str]]:
  """All below a folder, relative to it: files, folders that cannot be read, and what is
  hidden. Links to folders are followed, but no folder is entered twice."""
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
  """Whether it is called like an image, damaged or not, or begins like one."""
  if not file.is_file():  # a pipe, a link to nothing
    return False
  if file.suffix.lower() in _suffixes():
    return True
  try:
    with Image.open(file) as image:
      return image.format not in _NO_PICTURES
  except Exception:  # Pillow raises of many kinds
    return False


def _unused(name: str, names: set[str]) -> str:
  """The name, or the first of name-2, name-3, ... that is free; it is not any more."""
  candidate, number = name, 1
  while candidate.lower() in names:
    number += 1
    candidate = f'{name}-{number}'
  names.add(candidate.lower())
  return candidate
