"""Files of parameters that other frameworks wrote, read as numpy arrays by name.

Torch's files are pickles: torch itself reads them, with `weights_only`, so that nothing
in them is executed. The other formats need no torch.
"""

import contextlib
import dataclasses
import os
import pathlib
import pickle
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

WEIGHTS = ('ema', 'raw')
# What mmengine keeps beside the tensors (a log of losses, as numpy arrays) and torch
# refuses to build. Stand-ins that do nothing take their place, and are not read.
_LOGGED = (
  'mmengine.logging.history_buffer.HistoryBuffer',
  'mmengine.logging.log_buffer.LogBuffer',
  'numpy.core.multiarray._reconstruct',
  'numpy.core.multiarray.scalar',
  'numpy._core.multiarray._reconstruct',
  'numpy._core.multiarray.scalar',
  'numpy.ndarray',
  'numpy.dtype',
  'builtins.getattr',
)
_Entries = dict[str, Any]  # arrays of numpy or torch, by name
# The entries, those of a second copy of the parameters, and names of the classes.
_Content = tuple[_Entries, _Entries, tuple[str, ...]]


@dataclasses.dataclass(frozen=True)
class StateDict:
  """What a file of parameters holds.

  Attributes:
    arrays: by their names there, in the file's layout; floating point as float32.
    class_names: of class 0, 1, ...; empty if the file does not tell.
    averaged: whether the arrays are a running average of the parameters.
  """

  arrays: dict[str, np.ndarray]
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
      form (needs the extra `torch`).
    weights: 'ema', the average where the file has one; 'raw', what was trained.

  Raises:
    FileNotFoundError: no such file.
    ValueError: another kind of file, a damaged one, one without arrays or with more
      than plain data; torch is not installed.
  """
  path = pathlib.Path(path)
  if weights not in WEIGHTS:
    raise ValueError(f"weights={weights!r} must be 'ema' or 'raw'")
  if not path.is_file():
    raise FileNotFoundError(f'weights file {path} does not exist')
  if path.suffix not in _READERS:
    raise ValueError(f'weights file {path} must end in {", ".join(_READERS)}')
  entries, second, class_names = _READERS[path.suffix](path)
  entries, second = _without_prefix(entries), _without_prefix(second)
  if not second:
    entries, second = _split_buffers(entries)
  if not entries:
    raise ValueError(f'weights file {path} holds no arrays')
  chosen = entries | second if weights == 'raw' else entries
  arrays = {name: _array(path, name, value) for name, value in chosen.items()}
  return StateDict(arrays, class_names, averaged=bool(second) and weights == 'ema')


def _read_npz(path: pathlib.Path) -> _Content:
  with _damage(path, 'a numpy archive'), np.load(path, allow_pickle=False) as arrays:
    return dict(arrays), {}, ()


def _read_safetensors(path: pathlib.Path) -> _Content:
  from safetensors.numpy import load_file

  with _damage(path, 'a safetensors file'):
    return load_file(path), {}, ()


def _read_torch(path: pathlib.Path) -> _Content:
  checkpoint = _load_torch(path)
  if not isinstance(checkpoint, Mapping):
    raise ValueError(
      f'weights file {path} holds a {type(checkpoint).__name__}, not a dict of tensors'
    )
  held = [checkpoint.get(key) for key in ('state_dict', 'model')]
  state = next((x for x in held if isinstance(x, Mapping)), checkpoint)
  second = checkpoint.get('ema_state_dict', {})
  # `steps` counts the updates of the average; the tensors are below `module.`.
  second = {k: v for k, v in second.items() if k.startswith('module.')}
  return dict(state), second, _class_names(checkpoint.get('meta'))


def _load_torch(path: pathlib.Path) -> Any:
  try:
    import torch  # pyright: ignore[reportMissingImports]
  except ImportError as error:
    raise ValueError(
      f"reading {path} needs torch: pip install -e '.[torch]', or save the tensors as"
      ' .npz or .safetensors where there is torch'
    ) from error
  with _damage(path, 'a torch checkpoint'), warnings.catch_warnings():
    warnings.simplefilter('ignore')  # torch's, about pickles that are none of its own
    with torch.serialization.safe_globals(list(map(_stand_in, _LOGGED))):
      try:
        return torch.load(path, map_location='cpu', weights_only=True)
      except pickle.UnpicklingError as error:
        found = re.search(r'GLOBAL ([\w.]+)', str(error))
        if not found:
          raise
        name = found[1]
  raise ValueError(
    f'weights file {path} holds {name}, which is no plain data: nothing of it was run.'
    ' If you trust the file, load it where it was made and save'
    " {'state_dict': ..., 'meta': ...} with tensors, numbers and text alone"
  )


class _StandIn:
  """Takes whatever a pickle would build an object from, and keeps nothing."""

  def __new__(cls, *args):
    return super().__new__(cls)

  def __setstate__(self, state):
    pass


def _stand_in(path: str) -> type:
  # torch finds a class by the module and the name that it says it has.
  module, _, name = path.rpartition('.')
  return type(name, (_StandIn,), {'__module__': module})


def _class_names(meta: Any) -> tuple[str, ...]:
  """Of mmdet's `meta`: 3.x has it in `dataset_meta`, 2.x and 1.x in `CLASSES`."""
  meta = meta if isinstance(meta, Mapping) else {}
  data_set = meta.get('dataset_meta')
  held = [x for x in (data_set, meta) if isinstance(x, Mapping)]
  for names in (x.get(key) for x in held for key in ('classes', 'CLASSES')):
    if isinstance(names, list | tuple) and all(isinstance(x, str) for x in names):
      return tuple(names)
  return ()


def _without_prefix(entries: _Entries) -> _Entries:
  """Without the `module.` that torch's wrappers for several GPUs put before all."""
  prefix = 'module.'
  if not all(name.startswith(prefix) for name in entries):
    return entries
  return {name.removeprefix(prefix): value for name, value in entries.items()}


def _split_buffers(entries: _Entries) -> tuple[_Entries, _Entries]:
  """Takes out what mmdet 2.x names 'ema_backbone_conv1_weight', as the second copy."""
  buffers = {f'ema_{name.replace(".", "_")}': name for name in entries}
  second = {buffers[name]: x for name, x in entries.items() if name in buffers}
  return {name: x for name, x in entries.items() if name not in buffers}, second


def _array(path: pathlib.Path, name: str, value: Any) -> np.ndarray:
  try:
    if not isinstance(value, np.ndarray):
      value = value.detach()  # only torch's tensors come this far as something else
      value = (value.float() if value.is_floating_point() else value).numpy()
  except (AttributeError, TypeError, RuntimeError) as error:
    raise ValueError(
      f'weights file {path}: {name!r} is of type {type(value).__name__}, not an array of'
      " numbers; the tensors must stand alone or below 'state_dict' or 'model'"
    ) from error
  floating = jnp.issubdtype(value.dtype, jnp.floating)
  return value.astype(np.float32, copy=False) if floating else value


@contextlib.contextmanager
def _damage(path: pathlib.Path, kind: str) -> Iterator[None]:
  """Whatever a reader raises for a file that is not whole or another, as ValueError."""
  try:
    yield
  except (MemoryError, PermissionError):
    raise
  except Exception as error:
    reason = str(error).strip().partition('\n')[0][:200]
    raise ValueError(
      f'weights file {path} cannot be read as {kind}; is it cut off, or another kind of'
      f' file? ({type(error).__name__}: {reason})'
    ) from error


_READERS: dict[str, Callable[[pathlib.Path], _Content]] = {
  '.npz': _read_npz,
  '.safetensors': _read_safetensors,
  '.pth': _read_torch,
  '.pt': _read_torch,
}
