"""The TPUs that programs can be compiled for: numbers of a chip, and its slices."""

import math
import os
import re
from importlib.util import find_spec
from typing import Any, NamedTuple

from gfl_jax.config import choose
from gfl_jax.errors import UserError


class Chip(NamedTuple):
  """Numbers of one chip.

  Attributes:
    hbm_bytes: memory.
    flops: dense bfloat16 operations per second.
    bandwidth: of the memory, in bytes per second.
    links: bandwidth to other chips, all links together, one way, in bytes per second.
    clock: cycles per second of the matrix units.
    slices: shapes that are offered, up to 256 chips; the first is that of one host.
    chip_config: libtpu's name of the mode in which a chip is one device.
  Source: the tables of cloud.google.com/tpu/docs/v4, v5e, v5p and v6e (July 2026);
    v4's clock is from arXiv:2304.01433. Peak divided by clock is the work of the matrix
    units in a cycle: 2 x 128 x 128 for each of eight (v4, v5p) or four (v5e), and that
    of four of 256 x 256 (v6e).
  """

  hbm_bytes: float
  flops: float
  bandwidth: float
  links: float
  clock: float
  slices: tuple[str, ...]
  chip_config: str = 'default'


_CUBES = ('2x2x1', '2x2x2', '2x2x4', '2x4x4', '4x4x4', '4x4x8', '4x8x8')
_SQUARES = ('2x2', '2x4', '4x4', '4x8', '8x8', '8x16', '16x16')
CHIPS = {
  'v4': Chip(32 * 2**30, 275e12, 1200e9, 300e9, 1.05e9, _CUBES, 'megacore'),
  'v5e': Chip(16 * 2**30, 197e12, 819e9, 200e9, 1.5e9, _SQUARES),
  'v5p': Chip(95 * 2**30, 459e12, 2765e9, 600e9, 1.75e9, _CUBES),
  'v6e': Chip(32 * 2**30, 918e12, 1638e9, 400e9, 1.75e9, _SQUARES),
}


# Without a TPU there is no metadata server and no device to lock; these settings keep
# libtpu from looking for them.
_WITHOUT_TPU = {
  'TPU_SKIP_MDS_QUERY': '1',
  'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
  'TPU_WORKER_HOSTNAMES': 'localhost',
  'TPU_ACCELERATOR_TYPE': 'v5litepod-4',
}


class Slice(NamedTuple):
  """Chips that run one program; `devices` can only be compiled for."""

  name: str
  chip: Chip
  devices: list[Any]


def describe(topology: str) -> Slice:
  """The slice of a name such as 'v5e:16x16'.

  Raises:
    ValueError: the name is not that of a slice, or libtpu is not installed.
  """
  generation, _, shape = topology.partition(':')
  chip = choose(CHIPS, generation, f'--topology={topology}: the TPU')
  sides = shape.split('x')
  if len(sides) != len(chip.slices[0].split('x')) or not all(
    re.fullmatch('[1-9][0-9]*', side) for side in sides
  ):
    raise UserError(f'--topology={topology}: give {_known(generation, chip)}')
  if find_spec('libtpu') is None:
    raise UserError("the TPU's compiler is missing: pip install -e '.[tpu]'")
  for name, value in _WITHOUT_TPU.items():
    os.environ.setdefault(name, value)
  from jax.experimental import topologies

  try:
    described = topologies.get_topology_desc(
      topology, platform='tpu', chip_config_name=chip.chip_config
    )
  except (RuntimeError, NotImplementedError, ValueError) as error:
    raise UserError(
      f'--topology={topology} is no slice: give {_known(generation, chip)} ({error})'
    ) from error
  devices = list(described.devices)
  if len(devices) != math.prod(map(int, sides)):
    raise UserError(
      f'--topology={topology} has {len(devices)} devices, not one per chip'
    )
  return Slice(topology, chip, devices)


def _known(generation: str, chip: Chip) -> str:
  return ', '.join(f'{generation}:{shape}' for shape in chip.slices)
