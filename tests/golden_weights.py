"""Configs and weights of the detectors behind the golden arrays.

The weights of the whole models are drawn again instead of stored: each entry has its
own random stream, seeded by its name. The formula is the one that the arrays were
made with; tests/weights/test_mmdet.py compares the sums of every entry.
"""

import functools
import json
import pathlib
import re
import zlib

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from configs import gfl_r50_fpn_1x_coco
from gfl_jax.models import build_detector
from gfl_jax.weights import mmdet
from tests import golden

_FOLDER = pathlib.Path(__file__).parent / 'golden'


def config(name: str) -> ml_collections.ConfigDict:
  """The experiment config of 'model_r50', 'model_r18' or 'head'.

  The file of the head has no backbone: there it is the smallest that fits.
  """
  c = gfl_r50_fpn_1x_coco.get_config()
  if name == 'model_r18':
    c.model.backbone.depth = 18
    c.model.neck.channels = c.model.head.channels = 128
  if name == 'head':
    c.model.num_classes = 5
    c.model.backbone.update(depth=10, widths=(8, 8, 8, 8))
    c.model.neck.channels = 32
    c.model.head.update(channels=32, num_convs=2, norm_groups=8)
  return c


@functools.cache
def variables(name: str) -> dict:
  """The variables of build_detector(config(name)), all golden.

  For 'head', whose file has the head's parameters alone, the rest is zeros.
  """
  experiment = config(name)
  if name != 'head':
    return mmdet.from_mmdet(state_dict(name), experiment)
  image = jnp.zeros((1, 32, 32, 3))
  shapes = jax.eval_shape(build_detector(experiment).init, jax.random.key(0), image)
  entries = mmdet.to_mmdet(jax.tree.map(lambda s: np.zeros(s.shape), shapes))
  for key, value in golden.load('head').items():
    if key.startswith('params/'):
      entries[key.replace('params/', 'bbox_head.')] = value
  return mmdet.from_mmdet(entries, experiment)


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
