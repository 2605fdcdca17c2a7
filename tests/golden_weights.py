"""State dicts of the whole-model golden files, drawn again instead of stored.

Each entry comes from its own random stream, seeded by its name, so that the 130 MB
of weights behind model_r50.npz need no file. The formula is the one that the golden
arrays were made with; tests/deploy/test_weights.py compares every entry's sums.
"""

import functools
import json
import pathlib
import re
import zlib

import numpy as np

_FOLDER = pathlib.Path(__file__).parent / 'golden'


@functools.cache
def state_dict(name: str) -> dict[str, np.ndarray]:
  """mmdet's state dict of 'model_r50' or 'model_r18', in torch's layout."""
  state = json.loads((_FOLDER / f'{name}_state.json').read_text())
  return {key: _entry(key, shape, state['salt']) for key, shape, _ in state['entries']}


def checksums(name: str) -> dict[str, tuple[float, float]]:
  """Sum and sum of magnitudes of every entry of state_dict(name)."""
  return json.loads((_FOLDER / f'{name}_checksums.json').read_text())


def _entry(key: str, shape: list[int], salt: str) -> np.ndarray:
  if key.endswith('num_batches_tracked'):
    return np.zeros(shape, np.int64)
  if key.endswith('integral.project'):
    return np.arange(*shape, dtype=np.float32)
  rng = np.random.default_rng(zlib.crc32(f'{salt}{key}'.encode()))
  offset, spread = _distribution(key, shape, basic_blocks=salt == 'basic:')
  z = rng.standard_normal(shape)
  z = z * z if key.endswith('running_var') else z
  return np.asarray(offset + spread * z, np.float32)


def _distribution(
  key: str, shape: list[int], basic_blocks: bool
) -> tuple[float, float]:
  """Offset and factor of the standard normal numbers."""
  if len(shape) == 4:
    gains = {'gfl_cls': 2.0, 'gfl_reg': 1.5, 'neck': 1.0, '': 2.0**0.5}
    gain = next(gain for part, gain in gains.items() if part in key)
    return 0.0, gain / np.sqrt(np.prod(shape[1:]))
  last_norm = 'bn2' if basic_blocks else 'bn3'
  table = {
    r'running_mean$': (0.0, 0.5),
    r'running_var$': (0.6, 0.4),
    r'\.scale$': (1.0, 0.1),
    rf'\.{last_norm}\.weight$': (0.3, 0.05),
    r'weight$': (1.0, 0.1),
    r'gfl_cls\.bias$': (-6.5, 0.5),
    r'gfl_reg\.bias$': (0.0, 1.0),
    r'': (0.0, 0.1),
  }
  return next(value for part, value in table.items() if re.search(part, key))
