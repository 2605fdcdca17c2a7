"""manifest.json: what an export folder says of itself, and what is checked on reading.

It holds all that a caller needs who has none of this package: the programs' inputs and
outputs, how an image comes onto the canvas, what the classes are called. Every other
file of the folder is named with its SHA-256.
"""

import dataclasses
import hashlib
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
VERSION = 1  # of the folder's form; a reader refuses what is newer
FORMATS = ('params', 'stablehlo', 'onnx')
_KIND = 'gfl_jax export'

INPUTS = {
  'images': {
    'dtype': 'uint8',
    'shape': ['batch', 'height', 'width', 3],
    'meaning': 'RGB, each image at the top left of a canvas of zeros',
  },
  'image_sizes': {
    'dtype': 'int32',
    'shape': ['batch', 2],
    'meaning': '(height, width) of the part of the canvas that the image covers, px;'
    ' (0, 0) for a row that only fills up the batch',
  },
  'scales': {
    'dtype': 'float32',
    'shape': ['batch', 2],
    'meaning': '(x, y): canvas px per px of the original image, which is resized width'
    ' / original width and so on; 1 for a row that only fills up the batch',
  },
}
OUTPUTS = {
  'boxes': {
    'dtype': 'float32',
    'shape': ['batch', 'slots', 4],
    'meaning': 'left, top, right, bottom in px of the original image, by falling score',
  },
  'scores': {
    'dtype': 'float32',
    'shape': ['batch', 'slots'],
    'meaning': 'in (0, 1]; 0 in an unused slot',
  },
  'classes': {
    'dtype': 'int32',
    'shape': ['batch', 'slots'],
    'meaning': 'index into class_names and category_ids',
  },
  'valid': {
    'dtype': 'bool',
    'shape': ['batch', 'slots'],
    'meaning': 'false for an unused slot, which is zero everywhere',
  },
  'edge_std': {
    'dtype': 'float32',
    'shape': ['batch', 'slots', 4],
    'meaning': 'standard deviation of the left, top, right and bottom side, px of the'
    ' original image',
  },
}


@dataclasses.dataclass(frozen=True)
class Manifest:
  """What stands in manifest.json.

  Attributes:
    format: one of FORMATS.
    class_names: of class 0, 1, ...
    category_ids: the data set's own id of each class.
    config: the experiment's config, a locked ConfigDict.
    origin: where the parameters are from, as in `Trained`.
    programs: each with its `file`, `canvas` (height, width) and `batch`, a number of
      images or 'any'; none if the export is parameters alone.
    files: SHA-256 of each file by its name.
    verification: what the export was compared with, and the differences found; empty
      if it was not verified yet.
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
  """The (height, width) of the canvases of a config: its own and, if that is not
  square, the transposed one for images of the other orientation."""
  height, width = config.data.canvas
  return ((height, width),) if height == width else ((height, width), (width, height))


def write(
  folder: str | os.PathLike,
  trained: Trained,
  *,
  format: str,
  names: Sequence[str],
  programs: Sequence[Mapping[str, Any]] = (),
) -> None:
  """Writes the manifest of a folder whose other files are there already.

  Args:
    folder: of the export.
    trained: what was exported.
    format: one of FORMATS.
    names: names of the folder's other files.
    programs: as in `Manifest`.
  """
  folder = pathlib.Path(folder)
  config = json.loads(trained.config.to_json())
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
    'files': {name: sha256(folder / name) for name in names},
    'origin': dict(trained.origin),
    'verification': {},
    'config': config,
  }
  files.atomic_write(folder / NAME, json.dumps(content, indent=2) + '\n')


def record_verification(
  folder: str | os.PathLike, verification: Mapping[str, Any]
) -> None:
  """Adds to a manifest what `Manifest.verification` holds."""
  path = pathlib.Path(folder) / NAME
  content = json.loads(path.read_text()) | {'verification': dict(verification)}
  files.atomic_write(path, json.dumps(content, indent=2) + '\n')


def read(folder: str | os.PathLike) -> Manifest:
  """The manifest of an export folder, once its files are known to be whole.

  Raises:
    FileNotFoundError: not the folder of an export, or a file of it is missing.
    ValueError: not such a manifest, one of a newer version or of an unknown format; or
      a file that is not as it was written.
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
      f'{path} is no whole manifest of an export ({error!r}): export again'
    ) from error
  if found.format not in FORMATS:
    raise UserError(f'{path}: format {found.format!r} is not one of {FORMATS}')
  for name, checksum in found.files.items():
    _check_file(folder, name, checksum)
  return found


def head() -> dict[str, Any]:
  """What everything exported begins with: its kind and the versions it was made by."""
  versions = {'gfl-jax': __version__, 'jax': jax.__version__}
  return {'kind': _KIND, 'format_version': VERSION, 'versions': versions}


def check_head(content: Mapping[str, Any], path: str | os.PathLike) -> None:
  """Raises a ValueError unless `content` begins with a `head` that this code knows.

  Args:
    content: of a file.
    path: of that file, for the error.
  """
  if not isinstance(content, Mapping) or content.get('kind') != _KIND:
    raise UserError(f'{path} is not of an export of gfl_jax')
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
      f'{folder / name} is not as it was written (its SHA-256 differs from the'
      " manifest's): copy it again, or export again"
    )


def _preprocessing(config: Any) -> dict[str, Any]:
  """How an image comes onto a canvas: data/transforms.py's rule for evaluation."""
  return {
    'canvases': [list(canvas) for canvas in canvases(config)],
    'short_side': config.data.short_side[1],
    'max_long_side': config.data.max_long_side,
    'steps': [
      'turn the image upright by its EXIF orientation, put what is transparent over'
      ' white, and convert it to 8-bit RGB',
      'of two canvases [height, width] take the one that is wider or higher as the'
      ' image is; the first for a square image',
      'scale = min(short_side / min(h, w), max_long_side / max(h, w)); the resized h'
      ' and w are max(1, int(h * scale + 0.5)) and max(1, int(w * scale + 0.5))',
      'resize: bilinear, centres of pixels at half px, no antialiasing (as'
      " cv2.INTER_LINEAR; Pillow's Image.transform with AFFINE and BILINEAR)",
      'place it at the top left of the canvas, zeros around it',
      'image_sizes = (resized h, resized w); scales = (resized w / w, resized h / h)',
      'normalising, decoding and suppression are in the program: nothing is to be'
      ' subtracted or divided',
    ],
  }
