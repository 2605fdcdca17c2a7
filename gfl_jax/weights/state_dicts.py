"""Files of parameters that other frameworks wrote, read as numpy arrays by name."""

import dataclasses
import os
import pathlib
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file

from gfl_jax.errors import MissingFileError, UserError
from gfl_jax.weights import torch_files
from gfl_jax.weights.torch_files import Content

WEIGHTS = ('ema', 'raw')
_Arrays = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class StateDict:
  """What a file of parameters holds.

  Attributes:
    path: of the file.
    arrays: by their names there, in the file's layout; floating point as float32.
    class_names: of class 0, 1, ...; empty if they are not in the file.
    averaged: whether the arrays are a running average of the parameters.
  """

  path: pathlib.Path
  arrays: _Arrays
  class_names: tuple[str, ...] = ()
  averaged: bool = False


def read_state_dict(path: str | os.PathLike, weights: str = 'ema') -> StateDict:
  """The arrays of a weights file by their names there.

  A torch file may hold the tensors themselves, or hold them as `state_dict` or `model`.
  A prefix `module.` that all names share is removed. Where mmdet trained with a running
  average, its hooks swap the two before they save: the average has the plain names, and
  the trained parameters are under `ema_state_dict` (3.x) or named `ema_...` (2.x).

  Args:
    path: .npz; .safetensors; or .pth / .pt in torch's present or legacy form (needs the
      extra `torch`; nothing in the file is executed).
    weights: 'ema', the average where the file has one; 'raw', the trained parameters.

  Raises:
    FileNotFoundError: no such file.
    ValueError: another kind of file; an empty or damaged one; one without arrays, or
      with more than plain data; torch is not installed.
  """
  path = pathlib.Path(path)
  if weights not in WEIGHTS:
    raise UserError(f"weights={weights!r} must be 'ema' or 'raw'")
  if not path.is_file():
    raise MissingFileError(f'weights file {path} does not exist')
  if path.suffix not in _READERS:
    raise UserError(f'weights file {path} must end in {", ".join(_READERS)}')
  if not path.stat().st_size:
    raise UserError(f'weights file {path} is empty: download it again')
  arrays, second, class_names = _READERS[path.suffix](path)
  arrays, second = _without_prefix(arrays), _without_prefix(second)
  if not second:
    arrays, second = _split_buffers(arrays)
  if not arrays:
    raise UserError(f'weights file {path} holds no arrays')
  chosen = arrays | second if weights == 'raw' else arrays
  chosen = {
    name: x.astype(np.float32) if jnp.issubdtype(x.dtype, jnp.floating) else x
    for name, x in chosen.items()
  }
  return StateDict(path, chosen, class_names, bool(second) and weights == 'ema')


def _read_arrays(path: pathlib.Path) -> Content:
  kind = 'numpy archive' if path.suffix == '.npz' else 'safetensors file'
  try:
    if path.suffix == '.safetensors':
      return load_file(path), {}, ()
    with np.load(path, allow_pickle=False) as arrays:
      return dict(arrays), {}, ()
  except (MemoryError, PermissionError):
    raise
  except Exception as error:  # the readers raise many types
    raise UserError(
      f'weights file {path} cannot be read as a {kind}; is it cut off, or another kind'
      f' of file? ({type(error).__name__}: {error})'
    ) from error


def _read_torch(path: pathlib.Path) -> Content:
  with tempfile.TemporaryDirectory(prefix='gfl_jax_') as folder:
    target = pathlib.Path(folder) / 'arrays.pickle'
    # -P: the modules beside torch_files.py must not hide torch's own.
    command = [sys.executable, '-P', torch_files.__file__, str(path), str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
      reason = done.stderr.strip() or f'reading it ended with code {done.returncode}'
      raise UserError(reason if str(path) in reason else f'{path}: {reason}')
    return pickle.loads(target.read_bytes())


def _without_prefix(arrays: _Arrays) -> _Arrays:
  """Without the `module.` that torch's wrappers for several GPUs add to all names."""
  prefix = 'module.'
  if not all(name.startswith(prefix) for name in arrays):
    return arrays
  return {name.removeprefix(prefix): value for name, value in arrays.items()}


def _split_buffers(arrays: _Arrays) -> tuple[_Arrays, _Arrays]:
  """Separates the second copy, which mmdet 2.x names 'ema_backbone_conv1_weight'."""
  buffers = {f'ema_{name.replace(".", "_")}': name for name in arrays}
  second = {buffers[name]: x for name, x in arrays.items() if name in buffers}
  return {name: x for name, x in arrays.items() if name not in buffers}, second


_READERS: dict[str, Callable[[pathlib.Path], Content]] = {
  '.npz': _read_arrays,
  '.safetensors': _read_arrays,
  '.pth': _read_torch,
  '.pt': _read_torch,
}
