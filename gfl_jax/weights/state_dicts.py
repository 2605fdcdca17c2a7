"""Files of parameters that other frameworks wrote, read as numpy arrays by name."""

import contextlib
import dataclasses
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator

import jax.numpy as jnp
import numpy as np

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


def _read_npz(path: pathlib.Path) -> Content:
  with (
    _readable(path, 'a numpy archive'),
    np.load(path, allow_pickle=False) as arrays,
  ):
    return dict(arrays), {}, ()


def _read_safetensors(path: pathlib.Path) -> Content:
  from safetensors.numpy import load_file

  with _readable(path, 'a safetensors file'):
    return load_file(path), {}, ()


def _read_torch(path: pathlib.Path) -> Content:
  with tempfile.TemporaryDirectory(prefix='gfl_jax_') as folder:
    target = pathlib.Path(folder) / 'arrays.safetensors'
    # -P: the modules beside torch_files.py must not hide torch's own.
    command = [sys.executable, '-P', torch_files.__file__, str(path), str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
      reason = done.stderr.strip() or f'reading it ended with code {done.returncode}'
      raise UserError(reason if str(path) in reason else f'{path}: {reason}')
    return torch_files.unpack(target)


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


@contextlib.contextmanager
def _readable(path: pathlib.Path, kind: str) -> Iterator[None]:
  """Turns any error of a reader, which raises many types, into a UserError."""
  try:
    yield
  except (MemoryError, PermissionError):
    raise
  except Exception as error:
    raise UserError(
      f'weights file {path} cannot be read as {kind}; is it cut off, or another kind of'
      f' file? ({type(error).__name__}: {error})'
    ) from error


_READERS: dict[str, Callable[[pathlib.Path], Content]] = {
  '.npz': _read_npz,
  '.safetensors': _read_safetensors,
  '.pth': _read_torch,
  '.pt': _read_torch,
}
