"""Files of parameters that other frameworks wrote, read as numpy arrays by name."""

import dataclasses
import os
import pathlib

import numpy as np


@dataclasses.dataclass(frozen=True)
class StateDict:
  """What a file of parameters holds.

  Attributes:
    arrays: by their names there, in the file's layout.
    class_names: of class 0, 1, ...; empty if the file does not tell.
  """

  arrays: dict[str, np.ndarray]
  class_names: tuple[str, ...] = ()


def read_state_dict(path: str | os.PathLike) -> StateDict:
  """The arrays of a weights file by their names there.

  Args:
    path: .npz, or .pth / .pt as torch saves it (needs the extra `torch`; nothing in
      the file is executed).

  Raises:
    FileNotFoundError: no such file.
    ValueError: another kind of file, or torch is not installed.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise FileNotFoundError(f'weights file {path} does not exist')
  if path.suffix == '.npz':
    with np.load(path, allow_pickle=False) as arrays:
      return StateDict(dict(arrays))
  if path.suffix not in ('.pth', '.pt'):
    raise ValueError(f'weights file {path} must end in .npz, .pth or .pt')
  try:
    import torch  # pyright: ignore[reportMissingImports]
  except ImportError as error:
    raise ValueError(
      f"reading {path} needs torch: pip install -e '.[torch]', or save it as .npz"
    ) from error
  loaded = torch.load(path, map_location='cpu', weights_only=True)
  return StateDict({name: tensor.numpy() for name, tensor in loaded.items()})
