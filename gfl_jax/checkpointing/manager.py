"""Checkpoints: orbax, asynchronous; each is read back before older ones go.

The two newest, so that there is one to fall back to if a file is damaged, and the best
are kept.
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

from gfl_jax import private_apis
from gfl_jax.checkpointing import checksums, save_errors
from gfl_jax.errors import StorageError, UserError, is_transient
from gfl_jax.multihost import hosts
from gfl_jax.weights.trees import check_same, named_leaves

# A save that takes longer is given up: hosts wait so long for one whose store failed.
# On CPUs the collective in which that one waits meanwhile may take longer: launch.py.
_SAVE_SECONDS = 120
_LEFTOVER = '.orbax-checkpoint-tmp'  # in names of what orbax removes when it opens
_LOGGERS = ('absl', 'asyncio')  # by which orbax logs
_LOG = logging.getLogger(__name__)


class DamagedCheckpointError(UserError):
  """A stored checkpoint cannot be read, or its bytes are not those that were saved."""


class _Save(NamedTuple):
  step: int
  state: Any
  old_steps: list[int]  # that go once it can be read


class Checkpoints:
  """A run's checkpoints; use it as a context manager, so that saves are finished.

  With several hosts all of them call all methods, on a folder that all see.
  """

  def __init__(
    self,
    folder: str | pathlib.Path,
    aps: Mapping[int, float | None] | None = None,
    *,
    read_only: bool = False,
  ):
    """Opens or makes `folder`; leftovers of a save that was killed are removed.

    Args:
      folder: of the checkpoints.
      aps: of the steps that are evaluated, as `run_folder.evaluated_aps` has them: the
        best is kept. None stands for an AP of data without boxes.
      read_only: nothing is made, moved or removed, so that a run that is training now,
        and may be in the middle of a save, can be read.
    """
    self._folder = pathlib.Path(folder).absolute()
    self._aps = dict(aps or {})
    self._read_only = read_only
    self._running: _Save | None = None
    self._refused: _Save | None = None  # the last one, if it failed
    self._error: Exception | None = None  # of the running one
    self._failed: set[int] = set()
    self._openings = 0
    self._untold = save_errors.Untold()
    for name in _LOGGERS:
      logging.getLogger(name).addFilter(self._untold)
    self._open()

  def _open(self) -> None:
    self._manager = ocp.CheckpointManager(
      self._folder,
      item_handlers={
        'state': ocp.StandardCheckpointHandler(),
        'checksums': checksums.ChecksumHandler(),
      },
      options=ocp.CheckpointManagerOptions(
        # Another host's view of a shared folder may be an older one.
        single_host_load_and_broadcast=True,
        cleanup_tmp_directories=not self._read_only,
        create=not self._read_only,
        async_options=ocp.AsyncOptions(timeout_secs=_SAVE_SECONDS),
        # The barriers of a save that failed on one host are not met again.
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
      elif jax.process_count() == 1:  # others may not get here
        self._finish()
    finally:
      self._manager.close()
      for name in _LOGGERS:
        logging.getLogger(name).removeFilter(self._untold)

  @property
  def steps(self) -> list[int]:
    """Steps that are stored, oldest first."""
    return sorted(map(int, self._manager.all_steps()))  # numpy's, of several hosts

  @property
  def best_step(self) -> int | None:
    """The stored step with the highest AP; None before the first evaluation."""
    aps = [(ap, step) for step in self.steps if (ap := self._aps.get(step)) is not None]
    return max(aps)[1] if aps else None

  def is_evaluated(self, step: int) -> bool:
    """Whether the step was evaluated; `restore_newest` forgets what lies beyond it."""
    return step in self._aps

  def evaluated(self, step: int, ap: float | None) -> None:
    """Takes the AP of a step, so that the best is kept. Args as in `__init__`."""
    self._aps[step] = ap

  def find(self, which: str | int) -> int:
    """The stored step that is meant.

    Args:
      which: 'newest', 'best' (highest AP so far) or a number of steps.

    Raises:
      ValueError: no such step is stored; names those that are.
    """
    stored = self.steps
    if not stored:
      raise UserError(f'{self._folder} holds no checkpoint yet')
    named = {'newest': stored[-1], 'best': self.best_step}
    for step in stored:
      named[str(step)] = step
    found = named.get(str(which))
    if found is None and which == 'best':
      raise UserError(
        f'step=best: no step in {self._folder} is evaluated yet; stored: {stored}'
      )
    if found is None:
      raise UserError(f'step={which} is not stored in {self._folder}; stored: {stored}')
    return found

  def save(self, step: int, state: Any) -> None:
    """Starts saving. If the store refuses (a full disk), nothing stops but the save.

    Then a warning says so, by the next call at the latest; what was written is removed,
    and the step before stays the newest.

    Args:
      step: number of steps done.
      state: a tree of arrays; it may be donated as soon as this returns.
    """
    with hosts.work(takes_long=True):
      self._finish()
      keep = {*[*self.steps, step][-2:], self.best_step}
      old_steps = [stored for stored in self.steps if stored not in keep]
      self._start(_Save(step, state, old_steps))

  def poll(self) -> None:
    """Says so if the running save has failed; waits for nothing.

    For each step of a run. Several hosts would have to agree: they do at the next save.
    """
    if jax.process_count() > 1 or self._running is None:
      return
    if self._error or not self._manager.is_saving_in_progress():
      self._finish()

  def wait(self) -> None:
    """Until the last save is on disk; one that failed is tried once more.

    Raises:
      OSError: it failed again, or its state was donated since.
    """
    self._finish()
    if self._refused is not None and not _is_donated(self._refused.state):
      _LOG.warning('Trying once more to save step %d.', self._refused.step)
      self._start(self._refused)
      self._finish()
    if self._refused is not None:
      raise StorageError(
        f'step {self._refused.step} could not be saved; {self._newest()}. With space'
        f' for it in {self._folder} the same command goes on from there'
      )
    if self._failed:
      steps = sorted(self._failed)
      _LOG.warning('Saves that failed before: steps %s; %s.', steps, self._newest())
      self._failed.clear()

  def _start(self, save: _Save) -> None:
    self._running, self._error, self._untold.error = save, None, None
    with self._taking_error():
      self._manager.save(
        save.step,
        args=ocp.args.Composite(
          state=ocp.args.StandardSave(save.state),
          checksums=checksums.ChecksumSave(save.state),
        ),
      )

  def _finish(self) -> None:
    """Waits for the running save, if any; takes note whether it is on disk."""
    if self._running is None:
      return
    save, self._running = self._running, None
    with self._taking_error():
      self._manager.wait_until_finished()
    problems = _on_all_hosts(self._problem())
    if any(problems):
      # Afresh, it knows what is on disk and removes what a failed save left there.
      for _ in range(2):
        with self._taking_error():
          self._manager.close()
      private_apis.end_orbax_threads()
      self._open()
    advice = 'make space in'
    if stored := save.step in self.steps:
      problems = _on_all_hosts(self._problem_of_reading(save))
      advice = 'look at the disk of'
      stored = not any(problems)
      self._remove(save.old_steps if stored else [save.step])
    self._refused = None if stored else save
    if not stored:
      self._failed.add(save.step)
      _LOG.warning(
        'Step %d could not be saved (%s); %s. Training goes on: %s %s.',
        *(
          save.step,
          save_errors.by_host(problems),
          self._newest(),
          advice,
          self._folder,
        ),
      )

  def _problem_of_reading(self, save: _Save) -> str:
    """Why a save that is on disk cannot be restored from; empty if it can.

    The first host alone looks: the others may not see the folder yet.
    """
    if jax.process_index() > 0:
      return ''
    try:
      tree = self._manager.item_metadata(save.step)['state'].tree
      expected = checksums.read(self._folder / str(save.step))
      if expected.keys() != named_leaves(save.state).keys():
        return 'it lacks leaves of the state'
      wrong = checksums.wrong(named_leaves(self._read(save.step, tree)), expected)
    except Exception as error:
      return f'it cannot be read back: {save_errors.reason(error)}'
    return f'wrong checksums of {wrong[:3]}' if wrong else ''

  def _read(self, step: int, wanted: Any) -> Any:
    """Leaves of a stored state as numpy arrays, read by this host without the others.

    Args:
      step: a stored one.
      wanted: a part of its metadata's tree.
    """
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
          item=wanted,
          restore_args=jax.tree.map(as_numpy, wanted),
          partial_restore=True,
        ),
      )

  def _remove(self, steps: Sequence[int]) -> None:
    """Removes stored steps, each at once; what is left over goes at the next start."""
    if not steps:
      return
    if jax.process_index() == 0:
      for step in steps:
        leftover = self._folder / f'{step}-removed{_LEFTOVER}'
        try:
          (self._folder / str(step)).rename(leftover)
          shutil.rmtree(leftover)
        except OSError as error:
          _LOG.warning('Step %d cannot be removed: %s', step, error)
    self._manager.reload()  # what the first host sees

  def _problem(self) -> str:
    """Why the save failed, as far as this host knows; empty if it did not."""
    if self._error is None:
      return ''
    if save_errors.is_of_other_host(self._error):
      own = self._untold.error
      return save_errors.reason(own) if own else save_errors.ELSEWHERE
    return save_errors.reason(self._error)

  @contextlib.contextmanager
  def _taking_error(self) -> Iterator[None]:
    """Keeps the first error of the store for `_finish`; others are raised."""
    try:
      yield
    except Exception as error:
      if not save_errors.is_of_store(error):
        raise
      self._error = self._error or error

  def _newest(self) -> str:
    return f'the newest stored step is {self.steps[-1] if self.steps else None}'

  def restore(self, target: Any, step: int) -> Any:
    """The state of one step, with the shapes, dtypes and sharding of `target`.

    Raises:
      ValueError: leaves whose name, shape or dtype differ from the target's.
      DamagedCheckpointError: it cannot be read, or a leaf's checksum is wrong.
    """
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, target)
    with _damage(step):
      expected = checksums.read(self._folder / str(step))
      stored = self._manager.item_metadata(step)['state']
      stored = {x.name: x for x in jax.tree.leaves(stored.tree)}
    check_same(stored, abstract, f'the checkpoint of step {step}')
    with _damage(step):
      restored = self._manager.restore(
        step, args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
      )['state']
    _check(restored, expected, step)
    return restored

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
      raise UserError(f"weights={weights!r} must be 'ema' or 'raw'")
    with _damage(step):
      tree = self._manager.item_metadata(step)['state'].tree
      params = 'ema' if weights == 'ema' and tree['ema'] else 'params'
      wanted = {name: tree[name] for name in (params, 'batch_stats') if tree[name]}
      stored = self._read(step, wanted)
      expected = checksums.read(self._folder / str(step))
    _check(stored, expected, step)
    stored['params'] = stored.pop(params)
    return stored

  def restore_newest(self, target: Any) -> tuple[Any, int] | None:
    """The newest state that can be read and its step; None if nothing is stored.

    A damaged checkpoint is named in a warning, moved to `damaged/` beside the
    checkpoints, and the one before it is taken. One whose leaves are not the target's
    is damaged too if those of an older one are: a folder holds one model. Steps beyond
    the one that is returned will be trained anew: their APs are forgotten. Of a folder
    that is only read nothing is moved.

    Raises:
      ValueError: the checkpoints belong to another model or optimiser.
      DamagedCheckpointError: there are checkpoints, but none can be read.
    """
    problems: dict[int, ValueError] = {}
    for step in reversed(self.steps):
      try:
        state = self.restore(target, step)
      except ValueError as error:
        problems[step] = error
        continue
      for damaged, error in problems.items():
        _LOG.warning('Damaged checkpoint, going back to step %d: %s', step, error)
        if not self._read_only:
          self._put_aside(damaged)
      self._forget_beyond(step)
      return state, step
    for error in problems.values():
      if not isinstance(error, DamagedCheckpointError):
        raise error
    if problems:
      raise DamagedCheckpointError(
        f'none of the checkpoints {self.steps} in {self._folder} can be read: '
        + '; '.join(map(str, problems.values()))
      )
    self._forget_beyond(0)
    return None

  def _forget_beyond(self, last: int) -> None:
    self._aps = {step: ap for step, ap in self._aps.items() if step <= last}

  def _put_aside(self, step: int) -> None:
    if jax.process_index() == 0:
      aside = self._folder.parent / 'damaged'
      aside.mkdir(exist_ok=True)
      places = (aside / f'{step}.{number}' for number in itertools.count())
      place = next(place for place in places if not place.exists())
      (self._folder / str(step)).rename(place)
    ocp.multihost.sync_global_processes(f'put_aside_{step}')
    self._manager.reload()


def _check(tree: Any, expected: Mapping[str, int], step: int) -> None:
  wrong = checksums.wrong(checksums.on_host(tree), expected)
  if _on_any_host(bool(wrong)):
    where = wrong[:10] or 'leaves on another host'
    raise DamagedCheckpointError(f'step {step}: wrong checksum of {where}')


_MAX_BYTES = 200  # of a text that the others are told


def _on_all_hosts(text: str) -> list[str]:
  """What each host has; all of them ask at the same point."""
  if jax.process_count() == 1:
    return [text]
  mine = np.zeros(_MAX_BYTES, np.uint8)
  content = text.encode()[:_MAX_BYTES]
  mine[: len(content)] = list(content)
  rows = multihost_utils.process_allgather(mine)
  return [row.tobytes().rstrip(b'\0').decode(errors='ignore') for row in rows]


def _on_any_host(condition: bool) -> bool:
  """Whether it holds on one host at least; all of them ask at the same point."""
  return any(_on_all_hosts('yes' if condition else ''))


def _is_donated(tree: Any) -> bool:
  return any(isinstance(x, jax.Array) and x.is_deleted() for x in jax.tree.leaves(tree))


def _may_be_whole(error: Exception) -> bool:
  """A file that cannot be reached or held now: no reason to go back."""
  return isinstance(error, MemoryError | PermissionError) or is_transient(error)


@contextlib.contextmanager
def _damage(step: int) -> Iterator[None]:
  """Whatever orbax's file layers raise, as a DamagedCheckpointError on every host.

  Else hosts would go on from different steps, and wait for each other.
  """
  failed: Exception | None = None
  try:
    yield
  except Exception as error:
    if _may_be_whole(error):
      raise
    failed = error
  if _on_any_host(failed is not None):
    reason = str(failed)[:300] if failed else 'another host cannot read it'
    raise DamagedCheckpointError(f'step {step}: {reason}') from failed
