"""A checksum of each array of a checkpoint, stored beside the arrays.

orbax stores no checksums of array data: a flipped bit would be loaded unnoticed.
"""

import json
import pathlib
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import future

from gfl_jax.weights.trees import named_leaves

_FILE = 'metadata'  # as orbax calls the file of a JSON item


class ChecksumHandler(ocp.JsonCheckpointHandler):
  """Writes {name of a leaf: CRC-32} in a background thread, as orbax the leaves.

  The training thread only copies the arrays to the host, which orbax needs, too. Arrays
  are the same on every host, so the first host alone writes.
  """

  async def async_save(self, directory, item=None, args: Any = None):
    """Starts to write; the arrays may be donated when this has returned."""
    if jax.process_index() != 0:
      return []
    copies = on_host(args.state)

    async def write():
      (directory / _FILE).write_text(json.dumps(crc32(copies)))

    return [future.CommitFutureAwaitingContractedSignals(write(), name='checksums')]


@ocp.args.register_with_handler(ChecksumHandler, for_save=True)
class ChecksumSave(ocp.args.CheckpointArgs):
  """A tree of arrays."""

  def __init__(self, state: Any):
    self.state = state


@ocp.args.register_with_handler(ChecksumHandler, for_restore=True)
class ChecksumRestore(ocp.args.CheckpointArgs):
  """Required by orbax; `read` does not use it."""


def read(folder: pathlib.Path) -> dict[str, int]:
  """The checksums of a stored step by leaf.

  Args:
    folder: of the step.

  Raises:
    OSError, ValueError, TypeError: they cannot be read.
  """
  return dict(json.loads((folder / 'checksums' / _FILE).read_text()))


def check(tree: Any, expected: Mapping[str, int]) -> None:
  """Raises a ValueError if the checksum of a leaf is not as expected; names ten."""
  found = crc32(on_host(tree))
  if wrong := [name for name in found if found[name] != expected.get(name)]:
    raise ValueError(f'wrong checksum of {wrong[:10]}')


def on_host(tree: Any) -> dict[str, np.ndarray]:
  """The leaves of a tree by name, as NumPy arrays; all devices hold the same."""
  first = lambda x: x.addressable_data(0) if isinstance(x, jax.Array) else x
  leaves = {name: first(leaf) for name, leaf in named_leaves(tree).items()}
  for leaf in leaves.values():
    if isinstance(leaf, jax.Array):
      leaf.copy_to_host_async()
  return {name: np.asarray(leaf) for name, leaf in leaves.items()}


def crc32(arrays: Mapping[str, np.ndarray]) -> dict[str, int]:
  """CRC-32 of each array's bytes in C order."""
  as_bytes = lambda x: np.ascontiguousarray(x).reshape(-1).view(np.uint8).data
  return {name: zlib.crc32(as_bytes(x)) for name, x in arrays.items()}
