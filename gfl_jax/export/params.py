"""A detector's parameters in one safetensors file that says what they are of."""

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
  manifest.write(folder, trained, format='params', names=[FILE])


def load(folder: str | os.PathLike, described: manifest.Manifest) -> Trained:
  """The detector of a folder whose manifest was read, bit for bit as it was written.

  Raises:
    ValueError: what `read` raises, or the export holds no parameters.
  """
  if FILE not in described.files:
    raise UserError(
      f'{folder} is an export of format {described.format!r} without {FILE}'
    )
  return read(pathlib.Path(folder) / FILE)


def write_weights(trained: Trained, folder: str | os.PathLike) -> dict[str, np.ndarray]:
  """Writes the file alone.

  The arrays have names like 'params/backbone/stem/conv/kernel', the kernels of
  convolutions the shape [height, width, in, out]. The file's metadata holds 'kind',
  'format_version', 'versions', 'config', 'class_names', 'category_ids' and 'origin',
  each as JSON, and 'sha256', of all that and of the arrays.

  Returns:
    The arrays by their names.
  """
  arrays = {
    # `save` writes the bytes of a transposed array in the order they lie in.
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
  # `save_file` would make a file that its owner alone can read.
  files.atomic_write(pathlib.Path(folder) / FILE, save(arrays, metadata=stored))
  return arrays


def nested(arrays: Mapping[str, Any]) -> dict[str, Any]:
  """The variables that arrays with names like 'params/head/scale0' are."""
  return traverse_util.unflatten_dict(dict(arrays), sep='/')


def read(path: str | os.PathLike) -> Trained:
  """The detector of a file that `write_weights` wrote; nothing else is needed.

  Raises:
    FileNotFoundError: no such file.
    ValueError: no whole safetensors file, not one of these, of a newer version, not as
      it was written, or parameters that are not those of its config's detector.
  """
  if not pathlib.Path(path).is_file():
    raise MissingFileError(f'{path} does not exist')
  try:
    with safetensors.safe_open(path, framework='numpy') as file:
      stored = file.metadata() or {}
      arrays = {name: file.get_tensor(name) for name in file.keys()}
  except safetensors.SafetensorError as error:
    raise UserError(f'{path} is no whole safetensors file: {error}') from error
  manifest.check_head(_head_of(stored), path)
  if stored.get('sha256') != _sha256(arrays, stored):
    raise UserError(
      f'{path} is not as it was written (its SHA-256 differs from the one in its'
      ' metadata): copy it again, or export again'
    )
  try:
    metadata = {name: json.loads(text) for name, text in _described(stored).items()}
    names, ids = checked_classes(metadata['class_names'], metadata['category_ids'])
    config, origin = stored_config(metadata['config']), metadata['origin']
  except MALFORMED as error:
    raise UserError(
      f'{path} does not say what it is of ({error!r}): export again'
    ) from error
  trained = Trained(config, nested(arrays), names, ids, origin)
  check_trained(trained, path)
  return trained


def _head_of(stored: Mapping[str, str]) -> dict[str, Any]:
  """What `check_head` reads; a newer version may hold all else in another form."""
  head = {}
  for name in ('kind', 'format_version'):
    with contextlib.suppress(KeyError, json.JSONDecodeError):
      head[name] = json.loads(stored[name])
  return head


def _described(stored: Mapping[str, str]) -> dict[str, str]:
  return {name: text for name, text in stored.items() if name != 'sha256'}


def _sha256(arrays: Mapping[str, np.ndarray], stored: Mapping[str, str]) -> str:
  """Of the metadata and of the arrays, each by name, whatever their order in a file."""
  total = hashlib.sha256(json.dumps(_described(stored), sort_keys=True).encode())
  for name, array in sorted(arrays.items()):
    total.update(f'{name} {array.dtype} {array.shape}'.encode())
    total.update(array.tobytes())
  return total.hexdigest()
