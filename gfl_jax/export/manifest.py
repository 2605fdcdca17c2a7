"""manifest.json, which describes an export folder, and its checks on reading.

It holds all that a caller without this package needs: the programs' inputs and outputs,
how to place an image on the canvas, and what the classes are called. It names every
other file of the folder with its SHA-256.
"""

import dataclasses
import hashlib
import importlib.resources
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from gfl_jax import __version__, files
from gfl_jax.config import checked_classes, stored_config
from gfl_jax.errors import MissingFileError, UserError
from gfl_jax.files import MALFORMED
from gfl_jax.weights.trained import Trained

NAME = 'manifest.json'
VERSION = 1  # of the folder's form; a reader refuses a newer one
FORMATS = ('params', 'stablehlo', 'onnx')
_KIND = 'gfl_jax export'


# What is the same in every manifest: inputs and outputs of programs, and in words the
# rule by which evaluation places an image on a canvas.
_INTERFACE = json.loads(
  importlib.resources.files('gfl_jax.export').joinpath('interface.json').read_text()
)
INPUTS, OUTPUTS = _INTERFACE['inputs'], _INTERFACE['outputs']


@dataclasses.dataclass(frozen=True)
class Manifest:
  """The content of manifest.json.

  Attributes:
    format: one of FORMATS.
    class_names, category_ids, config, origin: as in `Trained`.
    programs: each with its `file`, `canvas` (height, width) and `batch`, 'any' for any
      number of images; empty if the export has only parameters.
    files: SHA-256 of each file by its name.
    verification: what the export was compared with, and the differences found; empty
      before the comparison.
  """

  format: str
  class_names: tuple[str, ...]
  category_ids: tuple[int, ...]
  config: Any
  origin: Mapping[str, Any]
  programs: tuple[Mapping[str, Any], ...]
  files: Mapping[str, str]
  verification: Mapping[str, Any]


def canvases(config: Any) -> tuple[tuple[int, int], ...]:
  """The canvases of a config as (height, width): its own and, if that is not square,
  its transpose for images of the other orientation."""
  height, width = config.data.canvas
  return ((height, width),) if height == width else ((height, width), (width, height))


def write(
  folder: str | os.PathLike,
  trained: Trained,
  *,
  format: str,
  programs: Sequence[Mapping[str, Any]] = (),
) -> None:
  """Writes the manifest of a folder whose other files are there already.

  Args:
    folder: of the export.
    trained: what was exported.
    format: one of FORMATS.
    programs: as in `Manifest`.
  """
  folder = pathlib.Path(folder)
  others = (path for path in folder.iterdir() if path.is_file() and path.name != NAME)
  content = {
    **head(),
    'format': format,
    'class_names': list(trained.class_names),
    'category_ids': list(trained.category_ids),
    'inputs': INPUTS,
    'outputs': OUTPUTS,
    'slots': trained.config.decode.max_detections,
    'preprocessing': _preprocessing(trained.config),
    'programs': list(programs),
    'files': {path.name: sha256(path) for path in sorted(others)},
    'origin': dict(trained.origin),
    'verification': {},
    'config': json.loads(trained.config.to_json()),
  }
  files.atomic_write(folder / NAME, json.dumps(content, indent=2) + '\n')


def record_verification(
  folder: str | os.PathLike, verification: Mapping[str, Any]
) -> None:
  """Adds `Manifest.verification` to a manifest."""
  path = pathlib.Path(folder) / NAME
  content = json.loads(path.read_text()) | {'verification': dict(verification)}
  files.atomic_write(path, json.dumps(content, indent=2) + '\n')


def read(folder: str | os.PathLike) -> Manifest:
  """The manifest of an export folder, after all its files are checked.

  Raises:
    FileNotFoundError: not the folder of an export, or a file of it is missing.
    ValueError: not a manifest, or one of a newer version or an unknown format; a file
      that differs from what was written.
  """
  folder = pathlib.Path(folder)
  path = folder / NAME
  if not path.is_file():
    raise MissingFileError(f'{folder} is not the folder of an export: no {NAME}')
  try:
    content = json.loads(path.read_text(encoding='utf-8'))
    check_head(content, path)
    names, ids = checked_classes(content['class_names'], content['category_ids'])
    found = Manifest(
      format=content['format'],
      class_names=names,
      category_ids=ids,
      config=stored_config(content['config']),
      origin=content['origin'],
      programs=tuple(content['programs']),
      files=dict(content['files']),
      verification=content['verification'],
    )
  except MALFORMED as error:
    raise UserError(
      f'{path} is not a complete manifest of an export ({error!r}): export again'
    ) from error
  if found.format not in FORMATS:
    raise UserError(f'{path}: format {found.format!r} is not one of {FORMATS}')
  for name, checksum in found.files.items():
    _check_file(folder, name, checksum)
  return found


def head() -> dict[str, Any]:
  """The first fields of every exported file: its kind, and which versions wrote it."""
  versions = {'gfl-jax': __version__, 'jax': jax.__version__}
  return {'kind': _KIND, 'format_version': VERSION, 'versions': versions}


def check_head(content: Mapping[str, Any], path: str | os.PathLike) -> None:
  """Raises a ValueError unless the content of the file `path` has a known `head`."""
  if not isinstance(content, Mapping) or content.get('kind') != _KIND:
    raise UserError(f'{path} is not part of an export of gfl_jax')
  version = content.get('format_version')
  if not isinstance(version, int):
    raise UserError(f'{path} has format_version={version!r}, no number: export again')
  if version > VERSION:
    raise UserError(
      f'{path} has format version {version}, and this gfl_jax reads up to {VERSION}:'
      ' update gfl_jax'
    )


def sha256(path: str | os.PathLike) -> str:
  """The SHA-256 of a file's bytes, in hexadecimal."""
  with open(path, 'rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


def _check_file(folder: pathlib.Path, name: str, checksum: str) -> None:
  if name != pathlib.PurePath(name).name:
    raise UserError(f'{folder / NAME} names a file outside its folder: {name!r}')
  if not (folder / name).is_file():
    raise MissingFileError(
      f'{folder / name} is missing: the manifest names it; copy the whole folder, or'
      ' export again'
    )
  if sha256(folder / name) != checksum:
    raise UserError(
      f'{folder / name} has changed since the export (its SHA-256 differs from the'
      " manifest's): copy it again, or export again"
    )


def _preprocessing(config: Any) -> dict[str, Any]:
  """How to place an image on a canvas."""
  return {
    'canvases': [list(canvas) for canvas in canvases(config)],
    'short_side': config.data.short_side[1],
    'max_long_side': config.data.max_long_side,
    'steps': _INTERFACE['preprocessing_steps'],
  }
