"""Files of parameters that other frameworks wrote, read as numpy arrays by name.

It does not import jax: it runs in a thread while another imports that.
"""

import contextlib
import dataclasses
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator

import ml_dtypes
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
    class_names: of class 0, 1, ...; empty if the file does not tell.
    averaged: whether the arrays are a running average of the parameters.
  """

  path: pathlib.Path
  arrays: _Arrays
  class_names: tuple[str, ...] = ()
  averaged: bool = False


def read_state_dict(path: str | os.PathLike, weights: str = 'ema') -> StateDict:
  """The arrays of a weights file by their names there.

  A torch file may hold the tensors themselves, or have them as its `state_dict` or
  `model`; a prefix `module.` of all names goes. Where mmdet trained with a running
  average, the average has the plain names, and the parameters that were trained are
  under `ema_state_dict` (3.x) or named `ema_...` (2.x): its hooks swap the two before
  they save.

  Args:
    path: .npz; .safetensors; or .pth / .pt as torch saves it, today's or its legacy
      form (needs the extra `torch`; nothing in the file is executed).
    weights: 'ema', the average where the file has one; 'raw', what was trained.

  Raises:
    FileNotFoundError: no such file.
    ValueError: another kind of file, an empty or damaged one, one without arrays or
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
    raise UserError(f'weights file {path} is empty: fetch it again')
  arrays, second, class_names = _READERS[path.suffix](path)
  arrays, second = _without_prefix(arrays), _without_prefix(second)
  if not second:
    arrays, second = _split_buffers(arrays)
  if not arrays:
    raise UserError(f'weights file {path} holds no arrays')
  chosen = arrays | second if weights == 'raw' else arrays
  chosen = {name: _float32(value) for name, value in chosen.items()}
  return StateDict(
    path, chosen, class_names, averaged=bool(second) and weights == 'ema'
  )


def _read_npz(path: pathlib.Path) -> Content:
  with _damage(path, 'a numpy archive'), np.load(path, allow_pickle=False) as arrays:
    return dict(arrays), {}, ()


def _read_safetensors(path: pathlib.Path) -> Content:
  from safetensors.numpy import load_file

  with _damage(path, 'a safetensors file'):
    return load_file(path), {}, ()


def _read_torch(path: pathlib.Path) -> Content:
  with tempfile.TemporaryDirectory(prefix='gfl_jax_') as folder:
    target = pathlib.Path(folder) / 'arrays.safetensors'
    # -P: the modules beside the program must not hide torch's own.
    command = [sys.executable, '-P', torch_files.__file__, str(path), str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
      reason = done.stderr.strip() or f'reading it ended with code {done.returncode}'
      raise UserError(reason if str(path) in reason else f'{path}: {reason}')
    return torch_files.unpack(target)


def _without_prefix(arrays: _Arrays) -> _Arrays:
  """Without the `module.` that torch's wrappers for several GPUs put before all."""
  prefix = 'module.'
  if not all(name.startswith(prefix) for name in arrays):
    return arrays
  return {name.removeprefix(prefix): value for name, value in arrays.items()}


def _split_buffers(arrays: _Arrays) -> tuple[_Arrays, _Arrays]:
  """Takes out what mmdet 2.x names 'ema_backbone_conv1_weight', as the second copy."""
  buffers = {f'ema_{name.replace(".", "_")}': name for name in arrays}
  second = {buffers[name]: x for name, x in arrays.items() if name in buffers}
  return {name: x for name, x in arrays.items() if name not in buffers}, second


def _float32(value: np.ndarray) -> np.ndarray:
  # Not by jnp.issubdtype, which knows more types: see the head of this file.
  bfloat16 = value.dtype == ml_dtypes.bfloat16
  floating = bfloat16 or np.issubdtype(value.dtype, np.floating)
  return value.astype(np.float32, copy=False) if floating else value


@contextlib.contextmanager
def _damage(path: pathlib.Path, kind: str) -> Iterator[None]:
  """Whatever a reader raises for a file that is not whole or another, as ValueError."""
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
