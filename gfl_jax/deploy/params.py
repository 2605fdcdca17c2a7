"""A detector's parameters in one safetensors file that says what they are of."""

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors
from flax import traverse_util
from safetensors.numpy import save_file

from gfl_jax.deploy import manifest
from gfl_jax.deploy.trained import Trained, stored_config

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
    raise ValueError(
      f'{folder} is an export of format {described.format!r} without {FILE}'
    )
  return read(pathlib.Path(folder) / FILE)


def write_weights(trained: Trained, folder: str | os.PathLike) -> dict[str, np.ndarray]:
  """Writes the file alone.

  The arrays have names like 'params/backbone/stem/conv/kernel', the kernels of
  convolutions the shape [height, width, in, out]. The file's metadata holds 'kind',
  'format_version', 'versions', 'config', 'class_names', 'category_ids' and 'origin',
  each as JSON.

  Returns:
    The arrays by their names.
  """
  arrays = {
    # `save_file` writes the bytes of a transposed array in the order they lie in.
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
  save_file(
    arrays,
    pathlib.Path(folder) / FILE,
    metadata={name: json.dumps(value) for name, value in metadata.items()},
  )
  return arrays


def nested(arrays: Mapping[str, Any]) -> dict[str, Any]:
  """The variables that arrays with names like 'params/head/scale0' are."""
  return traverse_util.unflatten_dict(dict(arrays), sep='/')


def read(path: str | os.PathLike) -> Trained:
  """The detector of a file that `write_weights` wrote; nothing else is needed.

  Raises:
    FileNotFoundError: no such file.
    ValueError: no whole safetensors file, not one of these, or of a newer version.
  """
  if not pathlib.Path(path).is_file():
    raise FileNotFoundError(f'{path} does not exist')
  try:
    with safetensors.safe_open(path, framework='numpy') as file:
      stored = file.metadata() or {}
      arrays = {name: file.get_tensor(name) for name in file.keys()}
  except safetensors.SafetensorError as error:
    raise ValueError(f'{path} is no whole safetensors file: {error}') from error
  try:
    metadata = {name: json.loads(text) for name, text in stored.items()}
  except json.JSONDecodeError:
    metadata = {}
  manifest.check_head(metadata, path)
  return Trained(
    config=stored_config(metadata['config']),
    variables=nested(arrays),
    class_names=tuple(metadata['class_names']),
    category_ids=tuple(metadata['category_ids']),
    origin=metadata['origin'],
  )
