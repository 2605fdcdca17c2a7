"""A run's checkpoints: orbax saves them in the background; each is then read back.

The two newest steps are kept, so that training can continue if one is damaged, and the
best one. Others are removed once a newer step has been read back.
"""

import contextlib
import itertools
import logging
import pathlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from gfl_jax.checkpointing import checksums, save_errors
from gfl_jax.errors import StorageError, UserError, is_transient
from gfl_jax.multihost import hosts
from gfl_jax.weights.trees import check_same, named_leaves

# The time limit of a save. If it fails on one host, the others wait this long for it;
# the time limit of collectives on CPUs must be longer, see launch.py.
_SAVE_SECONDS = 120
_TEMPORARY = '.orbax-checkpoint-tmp'  # orbax removes folders of such names at the start
_LOGGERS = ('absl', 'asyncio')  # of orbax
_MAX_BYTES = 200  # of a text that hosts exchange
_LOG = logging.getLogger(__name__)


class DamagedCheckpointError(UserError):
  """A stored checkpoint cannot be read, or its arrays are not those that were saved."""


class _Save(NamedTuple):
  step: int
  state: Any
  old_steps: list[int]  # removed once this one has been read back


class Checkpoints:
  """A run's checkpoints; as a context manager it finishes the last save.

  All hosts of a run call all methods, on a folder that they share.

  Attributes:
    aps: AP of each evaluated step, by which the best step is known; the caller adds
      those of new evaluations. None is the AP of data without boxes.
  """

  def __init__(
    self,
    folder: str | pathlib.Path,
    aps: Mapping[int, float | None] | None = None,
    *,
    read_only: bool = False,
  ):
    """Opens or makes `folder`, and removes what a killed process left half saved.

    Args:
      folder: of the checkpoints.
      aps: of earlier evaluations, from `run_folder.evaluated_aps`.
      read_only: nothing is made, moved or removed, so that the folder of a run that
        trains at this moment can be read.
    """
    self._folder = pathlib.Path(folder).absolute()
    self.aps = dict(aps or {})
    self._read_only = read_only
    self._running: _Save | None = None
    self._refused: _Save | None = None  # the last save, if it failed
    self._error: Exception | None = None  # of the running save
    self._failed: set[int] = set()
    self._openings = 0
    self._filter = save_errors.StorageErrorFilter()
    for name in _LOGGERS:
      logging.getLogger(name).addFilter(self._filter)
    self._open()

  def _open(self) -> None:
    self._manager = ocp.CheckpointManager(
      self._folder,
      item_handlers={
        'state': ocp.StandardCheckpointHandler(),
        'checksums': checksums.ChecksumHandler(),
      },
      options=ocp.CheckpointManagerOptions(
        # Another host may see an older content of a shared folder.
        single_host_load_and_broadcast=True,
        cleanup_tmp_directories=not self._read_only,
        create=not self._read_only,
        async_options=ocp.AsyncOptions(
          timeout_secs=_SAVE_SECONDS,
          # Otherwise threads wait for folders that cannot be made. Several hosts need
          # these threads, see `_start`.
          create_directories_asynchronously=jax.process_count() > 1,
        ),
        # After a save that failed on one host, its barriers must not be used again.
        multiprocessing_options=ocp.options.MultiprocessingOptions(
          barrier_sync_key_prefix=f'opening{self._openings}'
        ),
      ),
    )
    self._openings += 1

  def __enter__(self) -> 'Checkpoints':
    return self

  def __exit__(self, kind, *error) -> None:
    try:
      if kind is None:
        self.wait()
      elif jax.process_count() == 1:  # other hosts may have failed elsewhere
        self._finish()
    finally:
      self._manager.close()
      for name in _LOGGERS:
        logging.getLogger(name).removeFilter(self._filter)

  @property
  def steps(self) -> list[int]:
    """Steps that are stored, oldest first."""
    return sorted(map(int, self._manager.all_steps()))  # NumPy's with several hosts

  @property
  def best_step(self) -> int | None:
    """The stored step with the highest AP; None before the first evaluation."""
    aps = [(ap, step) for step in self.steps if (ap := self.aps.get(step)) is not None]
    return max(aps)[1] if aps else None

  def find(self, which: str | int) -> int:
    """The stored step that is 'newest', 'best' (highest AP) or a number of steps.

    Raises:
      ValueError: no such step is stored; names those that are.
    """
    stored = self.steps
    if not stored:
      raise UserError(f'{self._folder} holds no checkpoint yet')
    named = {'newest': stored[-1], 'best': self.best_step}
    found = (named | {str(step): step for step in stored}).get(str(which))
    if found is None:
      problem = 'no step is evaluated yet' if which == 'best' else 'not stored'
      raise UserError(f'step={which}: {problem} in {self._folder}; stored: {stored}')
    return found

  def save(self, step: int, state: Any) -> None:
    """Starts to save a state. If the storage refuses it, training can go on.

    A warning then names the reason, at the next call of a method at the latest; what
    was written is removed, and the step before stays the newest.

    Args:
      step: number of steps done.
      state: a tree of arrays; it may be donated as soon as this returns.
    """
    with hosts.work(takes_long=True):
      self._finish()
      kept = {*[*self.steps, step][-2:], self.best_step}
      self._start(_Save(step, state, [x for x in self.steps if x not in kept]))

  def warn_if_failed(self) -> None:
    """Warns if the running save has failed, without waiting; call it after each step.

    Several hosts, which have to agree about a save, do so at the next `save` instead.
    """
    if jax.process_count() > 1 or self._running is None:
      return
    if self._error or not self._manager.is_saving_in_progress():
      self._finish()

  def wait(self) -> None:
    """Waits until the last save is stored; one that failed is tried once more.

    Raises:
      OSError: it failed again, or its state has been donated.
    """
    self._finish()
    if self._refused:
      leaves = jax.tree.leaves(self._refused.state)
      if not any(isinstance(x, jax.Array) and x.is_deleted() for x in leaves):
        _LOG.warning('Trying once more to save step %d.', self._refused.step)
        self._start(self._refused)
        self._finish()
    if self._refused:
      raise StorageError(
        f'step {self._refused.step} could not be saved; {self._newest()}. Make space in'
        f' {self._folder} and start the same command: it continues from that step'
      )
    if self._failed:
      steps = sorted(self._failed)
      _LOG.warning('Saves that failed before: steps %s; %s.', steps, self._newest())
      self._failed.clear()

  def _start(self, save: _Save) -> None:
    self._running, self._error, self._filter.error = save, None, None
    with self._keeping_error():
      if jax.process_count() > 1 and jax.process_index() == 0:
        # If orbax cannot make the folder of the step, as on a full disk, its threads on
        # all hosts wait for it for five minutes, and no process can end before.
        folder = self._folder / f'new{_TEMPORARY}'
        folder.mkdir(exist_ok=True)
        folder.rmdir()
    if any(_on_all_hosts(self._problem())):
      return
    with self._keeping_error():
      self._manager.save(
        save.step,
        args=ocp.args.Composite(
          state=ocp.args.StandardSave(save.state),
          checksums=checksums.ChecksumSave(save.state),
        ),
      )

  def _finish(self) -> None:
    """Waits for the running save, if any, and finds out whether it can be read."""
    if self._running is None:
      return
    save, self._running = self._running, None
    with self._keeping_error():
      self._manager.wait_until_finished()
    problems = _on_all_hosts(self._problem())
    if any(problems):
      # A new manager knows what is stored and removes what the failed save has left.
      for _ in range(2):  # the first call raises the error of the save again
        with self._keeping_error():
          self._manager.close()
      self._open()
    stored, advice = save.step in self.steps, 'make space in'
    if stored:
      problems = _on_all_hosts(self._problem_of_reading(save))
      stored, advice = not any(problems), 'check the disk of'
      self._remove(save.old_steps if stored else [save.step])
    self._refused = None if stored else save
    if not stored:
      self._failed.add(save.step)
      text = 'Step %d could not be saved (%s); %s. Training goes on: %s %s.'
      reason = save_errors.by_host(problems)
      _LOG.warning(text, save.step, reason, self._newest(), advice, self._folder)

  @contextlib.contextmanager
  def _keeping_error(self) -> Iterator[None]:
    """Keeps the first storage error of a save for `_finish`; others are raised."""
    try:
      yield
    except Exception as error:
      if not save_errors.is_storage_error(error):
        raise
      self._error = self._error or error

  def _problem(self) -> str:
    """Why the save failed, as far as this host knows; empty if it did not fail."""
    error = self._error
    if error is None:
      return ''
    if save_errors.is_timeout(error):
      error = self._filter.error
    return save_errors.reason(error) if error else save_errors.OTHER_HOST

  def _problem_of_reading(self, save: _Save) -> str:
    """Why a stored save cannot be restored; empty if it can.

    The first host alone reads it: the others may not see the folder yet.
    """
    if jax.process_index() > 0:
      return ''
    try:
      tree, expected = self._contents(save.step)
      if expected.keys() != named_leaves(save.state).keys():
        return 'it lacks leaves of the state'
      checksums.check(self._read(save.step, tree), expected)
    except Exception as error:
      return f'it cannot be read back: {save_errors.reason(error)}'
    return ''

  def _contents(self, step: int) -> tuple[Any, dict[str, int]]:
    """The tree of a stored step's metadata, and its checksums by leaf."""
    tree = self._manager.item_metadata(step)['state'].tree
    return tree, checksums.read(self._folder / str(step))

  def _read(self, step: int, wanted: Any) -> Any:
    """A part of a step's tree as NumPy arrays, read by this host without the others."""
    as_numpy = lambda _: ocp.RestoreArgs(restore_type=np.ndarray)
    me = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
      primary_host=me, active_processes={me}, barrier_sync_key_prefix=f'process{me}'
    )
    handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=alone)
    with ocp.Checkpointer(handler, multiprocessing_options=alone) as reader:
      return reader.restore(
        self._folder / str(step) / 'state',
        args=ocp.args.PyTreeRestore(
          item=wanted, restore_args=jax.tree.map(as_numpy, wanted), partial_restore=True
        ),
      )

  def _remove(self, steps: Sequence[int]) -> None:
    """Removes stored steps; what cannot be removed goes when the run starts again."""
    if jax.process_index() == 0:
      for step in steps:
        removed = self._folder / f'{step}-removed{_TEMPORARY}'
        try:
          (self._folder / str(step)).rename(removed)
          shutil.rmtree(removed)
        except OSError as error:
          _LOG.warning('Step %d cannot be removed: %s', step, error)
    self._manager.reload()  # all hosts take over what the first one sees

  def _newest(self) -> str:
    return f'the newest stored step is {self.steps[-1] if self.steps else None}'

  def restore(self, target: Any, step: int) -> Any:
    """The state of one step, with the shapes, dtypes and sharding of `target`.

    Raises:
      ValueError: leaves whose name, shape or dtype differ from the target's.
      DamagedCheckpointError: it cannot be read, or a leaf's checksum is wrong.
    """
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, target)
    with _as_damage(step):
      tree, expected = self._contents(step)
    stored = {leaf.name: leaf for leaf in jax.tree.leaves(tree)}
    check_same(stored, abstract, f'the checkpoint of step {step}')
    with _as_damage(step):
      restored = self._manager.restore(
        step, args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
      )['state']
      checksums.check(restored, expected)
    return restored

  def restore_variables(self, step: int, weights: str = 'ema') -> dict[str, Any]:
    """A detector's variables alone, without the state of the optimizer.

    Args:
      step: a stored one.
      weights: 'ema', the running average of the parameters, or the parameters if the
        run has no average; 'raw', the parameters.

    Returns:
      {'params': ...} and, if there are any, 'batch_stats', of NumPy arrays.

    Raises:
      ValueError: other `weights`.
      DamagedCheckpointError: it cannot be read, or a leaf's checksum is wrong.
    """
    if weights not in ('ema', 'raw'):
      raise UserError(f"weights={weights!r} must be 'ema' or 'raw'")
    with _as_damage(step):
      tree, expected = self._contents(step)
      params = 'ema' if weights == 'ema' and tree['ema'] else 'params'
      wanted = {name: tree[name] for name in (params, 'batch_stats') if tree[name]}
      stored = self._read(step, wanted)
      checksums.check(stored, expected)
    stored['params'] = stored.pop(params)
    return stored

  def restore_newest(self, target: Any) -> tuple[Any, int] | None:
    """The newest state that can be read and its step; None if nothing is stored.

    A damaged checkpoint is named in a warning and moved to `damaged/` beside the
    checkpoints (not if `read_only`), and the one before it is restored. A folder holds
    one model: if the leaves of a checkpoint differ from the target's, but those of an
    older one do not, it is damaged. The APs of steps after the restored one are
    forgotten, because these steps will be trained again.

    Raises:
      ValueError: the checkpoints belong to another model or optimizer.
      DamagedCheckpointError: there are checkpoints, but none can be read.
    """
    problems: dict[int, ValueError] = {}
    restored, last = None, 0
    for step in reversed(self.steps):
      try:
        restored, last = (self.restore(target, step), step), step
        break
      except ValueError as error:
        problems[step] = error
    if problems and not restored:
      # An error of the target itself is raised as it is.
      for error in problems.values():
        if not isinstance(error, DamagedCheckpointError):
          raise error
      raise DamagedCheckpointError(
        f'none of the checkpoints {self.steps} in {self._folder} can be read: '
        + '; '.join(map(str, problems.values()))
      )
    for step, error in problems.items():
      _LOG.warning('Damaged checkpoint, continuing from step %d: %s', last, error)
      if not self._read_only:
        self._put_aside(step)
    self.aps = {step: ap for step, ap in self.aps.items() if step <= last}
    return restored

  def _put_aside(self, step: int) -> None:
    if jax.process_index() == 0:
      aside = self._folder.parent / 'damaged'
      aside.mkdir(exist_ok=True)
      places = (aside / f'{step}.{number}' for number in itertools.count())
      free = next(place for place in places if not place.exists())
      (self._folder / str(step)).rename(free)
    ocp.multihost.sync_global_processes(f'put_aside_{step}')
    self._manager.reload()


@contextlib.contextmanager
def _as_damage(step: int) -> Iterator[None]:
  """Makes an error of reading a DamagedCheckpointError, on all hosts.

  Otherwise hosts would continue from different steps, and wait for each other.
  """
  failed: Exception | None = None
  try:
    yield
  except Exception as error:
    # A file that cannot be reached at this moment is not damaged.
    if isinstance(error, MemoryError | PermissionError) or is_transient(error):
      raise
    failed = error
  if any(_on_all_hosts('failed' if failed else '')):
    reason = str(failed)[:300] if failed else 'another host cannot read it as saved'
    raise DamagedCheckpointError(f'step {step}: {reason}') from failed


def _on_all_hosts(text: str) -> list[str]:
  """The text of each host, cut off at `_MAX_BYTES`; all call this at the same point."""
  if jax.process_count() == 1:
    return [text]
  content = text.encode()[:_MAX_BYTES].ljust(_MAX_BYTES, b'\0')
  rows = multihost_utils.process_allgather(np.frombuffer(content, np.uint8))
  return [row.tobytes().rstrip(b'\0').decode(errors='ignore') for row in rows]
