"""Checkpoints: orbax, asynchronous; the two newest and the best are kept."""

import contextlib
import logging
import pathlib
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from gfl_jax.deploy.checks import check_same, named_leaves

METRIC = 'AP'
NOT_EVALUATED = -1.0
# A file that cannot be reached or held now may be whole: no reason to go back.
_NOT_DAMAGE = (MemoryError, PermissionError, TimeoutError)
_LOG = logging.getLogger(__name__)


class DamagedCheckpointError(ValueError):
  """A stored checkpoint cannot be read, or its bytes are not those that were saved."""


class Checkpoints:
  """A run's checkpoints; use it as a context manager, so that saves are finished."""

  def __init__(self, folder: str | pathlib.Path, *, read_only: bool = False):
    """Opens or makes `folder`; leftovers of a save that was killed are removed.

    Args:
      folder: of the checkpoints.
      read_only: nothing is made or removed, so that a run that is training now, and
        may be in the middle of a save, can be read.
    """
    metric = lambda metrics: metrics[METRIC]
    # With best-only keeping, orbax would delete the newest when it is not the best.
    # Two newest, so that there is one to fall back to if a file is damaged.
    keep = policies.AnyPreservationPolicy(
      [policies.LatestN(2), policies.BestN(get_metric_fn=metric, n=1)]
    )
    self._folder = pathlib.Path(folder).absolute()
    self._manager = ocp.CheckpointManager(
      self._folder,
      item_handlers={
        'state': ocp.StandardCheckpointHandler(),
        'checksums': ocp.JsonCheckpointHandler(),
      },
      options=ocp.CheckpointManagerOptions(
        preservation_policy=keep,
        best_fn=metric,
        best_mode='max',
        cleanup_tmp_directories=not read_only,
        create=not read_only,
      ),
    )

  def __enter__(self) -> 'Checkpoints':
    return self

  def __exit__(self, *error) -> None:
    self._manager.close()

  @property
  def steps(self) -> list[int]:
    """Steps that are stored, oldest first."""
    return sorted(self._manager.all_steps())

  @property
  def best_step(self) -> int | None:
    """The stored step with the highest AP; None before the first evaluation."""
    step = self._manager.best_step()
    metrics: Any = None if step is None else self._manager.metrics(step)
    return step if metrics and metrics[METRIC] != NOT_EVALUATED else None

  def find(self, which: str | int) -> int:
    """The stored step that is meant.

    Args:
      which: 'newest', 'best' (highest AP so far) or a number of steps.

    Raises:
      ValueError: no such step is stored; names those that are.
    """
    stored = self.steps
    if not stored:
      raise ValueError(f'{self._folder} holds no checkpoint yet')
    named = {'newest': stored[-1], 'best': self.best_step}
    for step in stored:
      named[str(step)] = step
    found = named.get(str(which))
    if found is None and which == 'best':
      raise ValueError(
        f'step=best: no step in {self._folder} is evaluated yet; stored: {stored}'
      )
    if found is None:
      raise ValueError(
        f'step={which} is not stored in {self._folder}; stored: {stored}'
      )
    return found

  def save(
    self, step: int, state: Any, metrics: Mapping[str, float] | None = None
  ) -> None:
    """Starts saving; an error of the save before is raised here.

    Args:
      step: number of steps done.
      state: a tree of arrays; it may be donated as soon as this returns.
      metrics: with 'AP' (None if the data has no boxes), if the state was evaluated.
    """
    ap = metrics[METRIC] if metrics else None
    self._manager.save(
      step,
      metrics={METRIC: NOT_EVALUATED if ap is None else float(ap)},
      args=ocp.args.Composite(
        state=ocp.args.StandardSave(state),
        checksums=ocp.args.JsonSave(_checksums(state)),
      ),
    )

  def wait(self) -> None:
    """Until the running save is on disk; raises its error."""
    self._manager.wait_until_finished()

  def restore(self, target: Any, step: int) -> Any:
    """The state of one step, with the shapes, dtypes and sharding of `target`.

    Raises:
      ValueError: leaves whose name, shape or dtype differ from the target's.
      DamagedCheckpointError: it cannot be read, or a leaf's checksum is wrong.
    """
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, target)
    with _damage(step):
      stored = self._manager.item_metadata(step)['state']
      stored = {x.name: x for x in jax.tree.leaves(stored.tree)}
    check_same(stored, abstract, f'the checkpoint of step {step}')
    with _damage(step):
      restored = self._manager.restore(
        step,
        args=ocp.args.Composite(
          state=ocp.args.StandardRestore(abstract),
          checksums=ocp.args.JsonRestore(),
        ),
      )
    _check_sums(restored['state'], restored['checksums'], step)
    return restored['state']

  def restore_variables(self, step: int, weights: str = 'ema') -> dict[str, Any]:
    """A detector's variables alone: the optimiser's state is not read.

    Args:
      step: a stored one.
      weights: 'ema', the running average where the run has one and the parameters
        themselves where it has none; 'raw', the parameters themselves.

    Returns:
      {'params': ...} and, if there are any, 'batch_stats', of numpy arrays.

    Raises:
      ValueError: other `weights`.
      DamagedCheckpointError: it cannot be read, or a leaf's checksum is wrong.
    """
    if weights not in ('ema', 'raw'):
      raise ValueError(f"weights={weights!r} must be 'ema' or 'raw'")
    with _damage(step):
      tree = self._manager.item_metadata(step)['state'].tree
      params = 'ema' if weights == 'ema' and tree['ema'] else 'params'
      wanted = {name: tree[name] for name in (params, 'batch_stats') if tree[name]}
      as_numpy = lambda _: ocp.RestoreArgs(restore_type=np.ndarray)
      with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        stored = reader.restore(
          self._folder / str(step) / 'state',
          args=ocp.args.PyTreeRestore(
            item=wanted,
            restore_args=jax.tree.map(as_numpy, wanted),
            partial_restore=True,
          ),
        )
      checksums = self._manager.restore(
        step, args=ocp.args.Composite(checksums=ocp.args.JsonRestore())
      )['checksums']
    _check_sums(stored, checksums, step)
    stored['params'] = stored.pop(params)
    return stored

  def restore_newest(self, target: Any) -> tuple[Any, int] | None:
    """The newest state that can be read and its step; None if nothing is stored.

    A damaged checkpoint is named in a warning, moved to `damaged/` beside the
    checkpoints, and the one before it is taken.

    Raises:
      ValueError: the newest readable one belongs to another model or optimiser.
      DamagedCheckpointError: there are checkpoints, but none can be read.
    """
    steps = self.steps
    for i, step in reversed(list(enumerate(steps))):
      try:
        state = self.restore(target, step)
      except DamagedCheckpointError as error:
        before = f'step {steps[i - 1]}' if i else 'none left'
        _LOG.warning('Damaged checkpoint, going back to %s: %s', before, error)
        continue
      for damaged in steps[i + 1 :]:
        self._put_aside(damaged)
      return state, step
    if steps:
      raise DamagedCheckpointError(
        f'none of the checkpoints {steps} in {self._folder} can be read'
      )
    return None

  def _put_aside(self, step: int) -> None:
    if jax.process_index() == 0:
      aside = self._folder.parent / 'damaged'
      aside.mkdir(exist_ok=True)
      number = len(list(aside.glob(f'{step}.*')))
      (self._folder / str(step)).rename(aside / f'{step}.{number}')
    ocp.multihost.sync_global_processes(f'put_aside_{step}')
    self._manager.reload()


def _checksums(tree: Any) -> dict[str, int]:
  # Orbax stores none for array data: a flipped bit would load without a word.
  crc = lambda x: zlib.crc32(np.ascontiguousarray(x).tobytes())
  return {name: crc(np.asarray(leaf)) for name, leaf in named_leaves(tree).items()}


def _check_sums(tree: Any, expected: Mapping[str, int], step: int) -> None:
  found = _checksums(tree)
  wrong = [name for name in found if found[name] != expected.get(name)]
  if wrong:
    raise DamagedCheckpointError(f'step {step}: wrong checksum of {wrong[:10]}')


@contextlib.contextmanager
def _damage(step: int) -> Iterator[None]:
  """Whatever orbax's file layers raise, as a DamagedCheckpointError."""
  try:
    yield
  except _NOT_DAMAGE:
    raise
  except Exception as error:
    raise DamagedCheckpointError(f'step {step}: {str(error)[:300]}') from error
