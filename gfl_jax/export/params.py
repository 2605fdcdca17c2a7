"""A detector's parameters in one safetensors file that describes the detector."""

import contextlib
import hashlib
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors
from flax import traverse_util
from safetensors.numpy import save

from gfl_jax import files
from gfl_jax.config import checked_classes, stored_config
from gfl_jax.errors import MissingFileError, UserError
from gfl_jax.export import manifest
from gfl_jax.files import MALFORMED
from gfl_jax.weights.trained import Trained, check_trained

FILE = 'weights.safetensors'


def write(trained: Trained, folder: str | os.PathLike) -> None:
  """Writes `weights.safetensors` and the manifest into an empty folder."""
  write_weights(trained, folder)
  manifest.write(folder, trained, format='params')


def load(folder: str | os.PathLike, described: manifest.Manifest) -> Trained:
  """The detector of a folder whose manifest was read; parameters equal bit for bit.

  Raises:
    ValueError: what `read` raises, or the export holds no parameters.
  """
  if FILE not in described.files:
    raise UserError(
      f'{folder} is an export of format {described.format!r} without {FILE}'
    )
  return read(pathlib.Path(folder) / FILE)


def write_weights(trained: Trained, folder: str | os.PathLike) -> dict[str, np.ndarray]:
  """Writes the file without a manifest.

  The arrays have names like 'params/backbone/stem/conv/kernel'; kernels of convolutions
  have the shape [height, width, in, out]. The file's metadata holds 'kind',
  'format_version', 'versions', 'config', 'class_names', 'category_ids' and 'origin',
  each as JSON, and 'sha256', of these and of the arrays.

  Returns:
    The arrays by their names.
  """
  arrays = {
    # `save` would write the bytes of a transposed array in their order in memory.
    name: np.asarray(leaf, order='C')
    for name, leaf in traverse_util.flatten_dict(trained.variables, sep='/').items()
  }
  metadata = {
    **manifest.head(),
    'config': json.loads(trained.config.to_json()),
    'class_names': trained.class_names,
    'category_ids': trained.category_ids,
    'origin': dict(trained.origin),
  }
  stored = {name: json.dumps(value) for name, value in metadata.items()}
  stored['sha256'] = _sha256(arrays, stored)
  # `save_file` would make a file that only its owner can read.
  files.atomic_write(pathlib.Path(folder) / FILE, save(arrays, metadata=stored))
  return arrays


def nested(arrays: Mapping[str, Any]) -> dict[str, Any]:
  """Variables from arrays by name, such as 'params/head/scale0'."""
  return traverse_util.unflatten_dict(dict(arrays), sep='/')


def read(path: str | os.PathLike) -> Trained:
  """The detector of a file that `write_weights` wrote; nothing else is needed.

  Raises:
    FileNotFoundError: no such file.
    ValueError: a damaged or incomplete file, one that is not exported parameters or is
      of a newer version, or parameters that are not those of its config's detector.
  """
  if not pathlib.Path(path).is_file():
    raise MissingFileError(f'{path} does not exist')
  try:
    with safetensors.safe_open(path, framework='numpy') as file:
      stored = file.metadata() or {}
      arrays = {name: file.get_tensor(name) for name in file.keys()}
  except safetensors.SafetensorError as error:
    raise UserError(
      f'{path} is not a complete safetensors file ({error}): copy it again'
    ) from error
  checksum, metadata = stored.pop('sha256', None), {}
  for name, text in stored.items():
    # A newer version may hold anything but the head in another form.
    with contextlib.suppress(json.JSONDecodeError):
      metadata[name] = json.loads(text)
  manifest.check_head(metadata, path)
  if checksum != _sha256(arrays, stored):
    raise UserError(
      f'{path} has changed since the export (its SHA-256 differs from the one in its'
      ' metadata): copy it again, or export again'
    )
  try:
    names, ids = checked_classes(metadata['class_names'], metadata['category_ids'])
    config, origin = stored_config(metadata['config']), metadata['origin']
  except MALFORMED as error:
    raise UserError(
      f'{path} does not describe its detector ({error!r}): export again'
    ) from error
  trained = Trained(config, nested(arrays), names, ids, origin)
  check_trained(trained, path)
  return trained


def _sha256(arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> str:
  """Of the metadata and the arrays; their order in the file does not count."""
  total = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
  for name, array in sorted(arrays.items()):
    total.update(f'{name} {array.dtype} {array.shape}'.encode())
    total.update(array.tobytes())
  return total.hexdigest()
