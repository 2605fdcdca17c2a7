"""Reference arrays in tests/golden, made by the authors' PyTorch code (mmdet 3.3.0)."""

import pathlib

import numpy as np

_FOLDER = pathlib.Path(__file__).parent / 'golden'


def load(name: str) -> dict[str, np.ndarray]:
  """All arrays of tests/golden/NAME.npz."""
  with np.load(_FOLDER / f'{name}.npz') as arrays:
    return dict(arrays)
