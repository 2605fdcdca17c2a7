"""Reads checkpoints of torch by torch itself, so that nothing in them is executed.

state_dicts.py runs this file as a program, which writes the arrays to a file: torch's
CUDA libraries take half a gigabyte of memory, which only the end of a process frees.
It imports nothing of this package, which need not be installed.
"""

import pathlib
import pickle
import re
import sys
import warnings
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np

# Types of the log of losses that mmengine saves beside the tensors, which torch refuses
# to build. Empty stand-ins replace them.
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
Content = tuple[dict[str, np.ndarray], dict[str, np.ndarray], tuple[str, ...]]
# First bytes of a file that torch saved: a zip, or before torch 1.6 a pickle.
_ZIP, _LEGACY = b'PK\x03\x04', b'\x80\x02\x8a\nl\xfc'


def read(path: pathlib.Path) -> Content:
  """The arrays of a torch file, those of its `ema_state_dict`, names of its classes.

  Args:
    path: in torch's present or legacy form: the tensors themselves, or a dict that
      holds them as `state_dict` or `model`.

  Returns:
    (arrays, arrays, class names), each empty if the file has none; floating point as
    float32.

  Raises:
    ValueError: not a torch file, a damaged one, or one with more than plain data; torch
      is not installed.
  """
  checkpoint = _load(path)
  if not isinstance(checkpoint, Mapping):
    raise ValueError(
      f'weights file {path} holds a {type(checkpoint).__name__}, not a dict of tensors'
    )
  held = [checkpoint.get(key) for key in ('state_dict', 'model')]
  state = next((x for x in held if isinstance(x, Mapping)), checkpoint)
  second = checkpoint.get('ema_state_dict', {})
  # `steps` counts the updates of the average; the tensors are below `module.`.
  second = {k: v for k, v in second.items() if k.startswith('module.')}
  arrays = lambda entries: {k: _array(path, k, v) for k, v in entries.items()}
  return arrays(state), arrays(second), _class_names(checkpoint.get('meta'))


def main(source: str, target: str) -> None:
  """Writes what `read` returns, which is arrays and text, as a pickle."""
  with open(target, 'wb') as file:
    pickle.dump(read(pathlib.Path(source)), file)


def _load(path: pathlib.Path) -> Any:
  try:
    import torch  # pyright: ignore[reportMissingImports]
  except ImportError as error:
    raise ValueError(
      f"reading {path} needs torch: pip install -e '.[torch]', or save the tensors as"
      ' .npz or .safetensors where there is torch'
    ) from error
  try:
    with warnings.catch_warnings():
      warnings.simplefilter('ignore')  # torch's, about pickles that others wrote
      with torch.serialization.safe_globals([_stand_in(name) for name in _LOGGED]):
        return torch.load(path, map_location='cpu', weights_only=True)
  except (MemoryError, PermissionError):
    raise
  except Exception as error:  # torch raises many types
    found = re.search(r'GLOBAL ([\w.]+)', str(error))
    if found and isinstance(error, pickle.UnpicklingError):
      raise ValueError(
        f'weights file {path} holds {found[1]}, which is not plain data; nothing of it'
        ' was run. If you trust the file, load it where it was made and save'
        " {'state_dict': ..., 'meta': ...} with only tensors, numbers and text"
      ) from error
    raise ValueError(f'weights file {path} {_what_is_wrong(path, error)}') from error


def _what_is_wrong(path: pathlib.Path, error: Exception) -> str:
  """Why torch cannot read a file, in plainer words than torch's own."""
  with path.open('rb') as file:
    head = file.read(24)
  if head.startswith(_LEGACY) or (head.startswith(_ZIP) and not _is_whole_zip(path)):
    return 'is damaged or cut off: download it again'
  reason = f'it begins with {head!r}'
  if head.startswith(_ZIP):
    # Torch first advises to switch its checks off; its reason comes after that.
    reason = str(error).rpartition('WeightsUnpickler error: ')[-1].strip()
    reason = reason.partition('\n')[0][:200]
  return f'is not a checkpoint that torch can read ({reason})'


def _is_whole_zip(path: pathlib.Path) -> bool:
  try:
    with zipfile.ZipFile(path) as archive:
      return archive.testzip() is None
  except (zipfile.BadZipFile, EOFError, ValueError, NotImplementedError):
    return False


def _stand_in(path: str) -> type:
  """A class that accepts any arguments and state from a pickle, and keeps nothing."""
  # torch finds a class by its __module__ and __name__.
  module, _, name = path.rpartition('.')
  accept = lambda *_: None
  methods = {'__init__': accept, '__setstate__': accept}
  return type(name, (), {'__module__': module, **methods})


def _class_names(meta: Any) -> tuple[str, ...]:
  """From mmdet's `meta`: 3.x has them in `dataset_meta`, 2.x and 1.x in `CLASSES`."""
  meta = meta if isinstance(meta, Mapping) else {}
  held = [x for x in (meta.get('dataset_meta'), meta) if isinstance(x, Mapping)]
  for names in (x.get(key) for x in held for key in ('classes', 'CLASSES')):
    if isinstance(names, list | tuple) and all(isinstance(x, str) for x in names):
      return tuple(names)
  return ()


def _array(path: pathlib.Path, name: str, value: Any) -> np.ndarray:
  try:
    value = value.detach()
    value = (value.float() if value.is_floating_point() else value).numpy()
    return np.asarray(value, order='C')
  except (AttributeError, TypeError, RuntimeError) as error:
    raise ValueError(
      f'weights file {path}: {name!r} is of type {type(value).__name__}, not an array'
      " of numbers; tensors must be at the top level or below 'state_dict' or 'model'"
    ) from error


if __name__ == '__main__':
  try:
    main(*sys.argv[1:])
  except (ValueError, OSError) as error:
    sys.exit(str(error))
