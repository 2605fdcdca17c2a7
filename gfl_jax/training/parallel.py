"""Runs a per-device function on all devices of all hosts, one of two ways.

`jit` is `jax.jit(jax.shard_map(...))` over a mesh of all devices; `pmap` is `jax.pmap`.
Both get the same function, return global arrays of the same form and the same numbers.
"""

import functools
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from gfl_jax.errors import UserError
from gfl_jax.multihost import hosts
from gfl_jax.training.step import AXIS

MODES = ('jit', 'pmap')


class DataParallel:
  """All devices side by side: parameters on each, the batch split among them."""

  def __init__(self, mode: str, devices: Sequence[Any] | None = None):
    """Takes `mode` 'jit' or 'pmap' and, by default, all devices.

    Raises:
      ValueError: a mode that does not exist.
    """
    if mode not in MODES:
      raise UserError(f'parallel={mode!r} is not one of {list(MODES)}')
    self.mode = mode
    # Ordered by host, as pmap needs them. `jax.make_mesh` would order by the links
    # between chips, which gains nothing with one axis, and would take one slice only.
    self.devices = sorted(
      jax.devices() if devices is None else devices,
      key=lambda device: (device.process_index, device.id),
    )
    self.mesh = jax.sharding.Mesh(
      np.array(self.devices), (AXIS,), axis_types=(jax.sharding.AxisType.Auto,)
    )
    # check_vma would add collectives to gradients that the step sums itself.
    self._shard_map = functools.partial(jax.shard_map, mesh=self.mesh, check_vma=False)

  @property
  def num_devices(self) -> int:
    """Devices of all hosts."""
    return len(self.devices)

  def check_batch_size(self, batch_size: int, accumulate: int = 1) -> None:
    """Raises a ValueError if a batch cannot be split evenly."""
    parts = self.num_devices * accumulate
    if batch_size <= 0 or batch_size % parts:
      raise UserError(
        f'batch_size={batch_size} cannot be split over {self.num_devices} device(s)'
        f' x accumulate={accumulate}: make it a multiple of {parts}'
      )

  def replicate(self, tree: Any) -> Any:
    """The tree on every device.

    Raises:
      ValueError: hosts with different values, as from different files of weights.
    """
    sharding = jax.NamedSharding(self.mesh, jax.P())
    if jax.process_count() == 1:
      return jax.device_put(tree, sharding)
    # device_put would compare each leaf on all hosts, with a program for each shape.
    tree = jax.device_get(tree)
    checksum = 0
    for leaf in jax.tree.leaves(tree):
      checksum = zlib.crc32(np.asarray(leaf).tobytes(), checksum)
    self.check_equal(
      checksum,
      'would start from other values than process 0: give all hosts the same file of'
      ' weights and the same versions of the packages',
    )
    put = lambda x: jax.make_array_from_process_local_data(sharding, x, x.shape)
    return jax.tree.map(put, tree)

  def check_equal(self, checksum: int, problem: str) -> None:
    """Checks that all processes have the same checksum; all of them call it.

    It is also the first program that runs on all devices. On CPUs all must reach the
    first one within half a minute, later ones within minutes.

    Args:
      checksum: 32 bits, of what this process has.
      problem: what a process with another checksum would do wrong, and the remedy.

    Raises:
      ValueError: some have another one; names them, on all processes.
    """
    if jax.process_count() == 1:
      return
    hosts.wait_for_all()
    rows = np.full((len(self.mesh.local_devices), 1), checksum, np.uint32)
    everywhere = jax.NamedSharding(self.mesh, jax.P())
    gather = jax.jit(lambda x: x, out_shardings=everywhere)
    found = np.asarray(gather(self._put(rows)))[:, 0]
    devices = zip(self.devices, found, strict=True)
    others = sorted({d.process_index for d, value in devices if value != found[0]})
    if others:
      raise UserError(f'process(es) {others} {problem}')

  def _put(self, rows: np.ndarray) -> jax.Array:
    sharding = jax.NamedSharding(self.mesh, jax.P(AXIS))
    return jax.make_array_from_process_local_data(sharding, rows)

  def split(self, batch: Mapping[str, np.ndarray]) -> Any:
    """This host's rows of a batch as global arrays, split over the devices.

    Under pmap the first axis is the devices, the second the rows of one device.
    """
    if self.mode == 'pmap':
      local = len(self.mesh.local_devices)
      by_device = lambda x: x.reshape(local, -1, *x.shape[1:])
      batch = jax.tree.map(by_device, dict(batch))
    return jax.tree.map(self._put, dict(batch))

  def update(self, step: Callable) -> Callable:
    """Compiles `step` for all devices; the compiled function donates its state.

    Args:
      step: (state, batch) -> (state, metrics) of one device.
    """
    if self.mode == 'jit':
      mapped = self._shard_map(step, in_specs=(jax.P(), jax.P(AXIS)), out_specs=jax.P())
      return jax.jit(mapped, donate_argnums=0)
    axes = {'in_axes': (None, 0), 'out_axes': None}
    mapped = jax.pmap(step, AXIS, **axes, devices=self.devices, donate_argnums=0)
    if jax.process_count() == 1:
      return mapped
    return lambda state, batch: jax.tree.map(self._as_global, mapped(state, batch))

  def predict(self, function: Callable) -> Callable:
    """(variables, batch) -> a tree of arrays, each with the batch as its first axis."""
    if self.mode == 'jit':
      in_specs = (jax.P(), jax.P(AXIS))
      return jax.jit(
        self._shard_map(function, in_specs=in_specs, out_specs=jax.P(AXIS))
      )
    mapped = jax.pmap(function, AXIS, in_axes=(None, 0), devices=self.devices)

    def run(variables, batch):
      outputs = mapped(variables, batch)  # on several hosts, this host's rows
      return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), outputs)

    return run

  def _as_global(self, local: jax.Array) -> jax.Array:
    """An output of pmap, which is on this host's devices, as a global array."""
    return jax.make_array_from_single_device_arrays(
      local.shape,
      jax.NamedSharding(self.mesh, jax.P()),
      [shard.data for shard in local.addressable_shards],
    )
