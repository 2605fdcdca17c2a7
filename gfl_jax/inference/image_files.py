"""The image files that a command line means, and a name of its own for each."""

import glob
import os
import pathlib
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from gfl_jax.errors import MissingFileError, UserError

SUFFIXES = {
  '.bmp', '.gif', '.jp2', '.jpeg', '.jpg', '.pgm', '.png', '.ppm', '.tif', '.tiff',
  '.webp',
}  # fmt: skip
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
      that are called like an image and not hidden, by name; patterns of either, as
      'photos/**/*.jpg'.
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
      raise UserError(
        f'no image in {text}: files that end in {", ".join(sorted(SUFFIXES))} are taken'
      )
    for path, name in files:
      if path.resolve() not in found:
        found[path.resolve()] = ImageFile(path, _unused(name, names))
  return list(found.values())


def _files(text: str, left_out: pathlib.Path) -> Iterator[tuple[pathlib.Path, str]]:
  """Paths with the names that they would have if they were the only ones."""
  paths = [text] if os.path.exists(text) else sorted(glob.glob(text, recursive=True))
  if not paths:
    raise MissingFileError(
      f'no file fits {text!r}' if glob.has_magic(text) else f'{text} does not exist'
    )
  for path in map(pathlib.Path, paths):
    if not path.is_dir():
      yield path, path.stem
      continue
    for file in sorted(path.rglob('*')):
      inside = file.relative_to(path)
      hidden = any(part.startswith('.') for part in inside.parts)
      ours = file.resolve().is_relative_to(left_out)
      if file.suffix.lower() in SUFFIXES and file.is_file() and not hidden | ours:
        folders = (
          f'{part}_' if part.lower().endswith(PICTURE_SUFFIX) else part
          for part in inside.parent.parts
        )
        yield file, pathlib.PurePosixPath(*folders, file.stem).as_posix()


def _unused(name: str, names: set[str]) -> str:
  """The name, or the first of name-2, name-3, ... that is free; it is not any more."""
  candidate, number = name, 1
  while candidate.lower() in names:
    number += 1
    candidate = f'{name}-{number}'
  names.add(candidate.lower())
  return candidate
