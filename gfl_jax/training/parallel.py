"""Runs a per-device function on all devices of all hosts, one of two ways.

`jit` is `jax.jit(jax.shard_map(...))` over a mesh of all devices; `pmap` is `jax.pmap`.
Both get the same function, return global arrays of the same form and the same numbers.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from gfl_jax.training.step import AXIS

MODES = ('jit', 'pmap')


class DataParallel:
  """All devices side by side: parameters on each, the batch split among them."""

  def __init__(self, mode: str, devices: Sequence[Any] | None = None):
    """Takes `mode` 'jit' or 'pmap' and, by default, all devices.

    Raises:
      ValueError: a mode that does not exist, or pmap on several hosts.
    """
    if mode not in MODES:
      raise ValueError(f'parallel={mode!r} is not one of {list(MODES)}')
    if mode == 'pmap' and jax.process_count() > 1:
      raise ValueError("parallel='pmap' runs on one host; on several give 'jit'")
    self.mode = mode
    self.devices = jax.devices() if devices is None else list(devices)
    auto = (jax.sharding.AxisType.Auto,)
    self.mesh = jax.make_mesh(
      (len(self.devices),), (AXIS,), axis_types=auto, devices=self.devices
    )

  @property
  def num_devices(self) -> int:
    """Devices of all hosts."""
    return len(self.devices)

  def check_batch_size(self, batch_size: int, accumulate: int = 1) -> None:
    """Raises a ValueError if a batch cannot be split evenly."""
    parts = self.num_devices * accumulate
    if batch_size <= 0 or batch_size % parts:
      raise ValueError(
        f'batch_size={batch_size} cannot be split over {self.num_devices} device(s)'
        f' x accumulate={accumulate}: make it a multiple of {parts}'
      )

  def replicate(self, tree: Any) -> Any:
    """The tree on every device."""
    return jax.device_put(tree, jax.NamedSharding(self.mesh, jax.P()))

  def split(self, batch: Mapping[str, np.ndarray]) -> Any:
    """This host's rows of a batch as global arrays, split over the devices.

    Under pmap their first axis is the devices, the second a device's rows.
    """
    if self.mode == 'pmap':
      by_device = lambda x: x.reshape(self.num_devices, -1, *x.shape[1:])
      batch = jax.tree.map(by_device, dict(batch))
    sharding = jax.NamedSharding(self.mesh, jax.P(AXIS))
    put = lambda x: jax.make_array_from_process_local_data(sharding, x)
    return jax.tree.map(put, dict(batch))

  def update(self, step: Callable) -> Callable:
    """(state, batch, numbers) -> (state, scalars); uses up the state that goes in."""
    if self.mode == 'jit':
      in_specs = (jax.P(), jax.P(AXIS), jax.P())
      return jax.jit(
        self._shard_map(step, in_specs, (jax.P(), jax.P())), donate_argnums=0
      )
    return jax.pmap(
      step,
      AXIS,
      in_axes=(None, 0, None),
      out_axes=(None, None),
      devices=self.devices,
      donate_argnums=0,
    )

  def predict(self, function: Callable) -> Callable:
    """(variables, batch) -> a tree of arrays, each with the batch as its first axis."""
    if self.mode == 'jit':
      in_specs = (jax.P(), jax.P(AXIS))
      return jax.jit(self._shard_map(function, in_specs, jax.P(AXIS)))
    mapped = jax.pmap(function, AXIS, in_axes=(None, 0), devices=self.devices)

    def run(variables, batch):
      outputs = mapped(variables, batch)
      return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), outputs)

    return run

  def _shard_map(self, function, in_specs, out_specs):
    # check_vma would add collectives to gradients that the step already sums itself.
    return jax.shard_map(
      function,
      mesh=self.mesh,
      in_specs=in_specs,
      out_specs=out_specs,
      check_vma=False,
    )
