"""A run's folder: its config and environment, and the numbers it logs."""

import contextlib
import importlib.metadata
import itertools
import json
import logging
import os
import pathlib
import platform
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import ml_collections

from gfl_jax import __version__, files
from gfl_jax.checkpointing.manager import Checkpoints
from gfl_jax.config import checked_classes, completed, differences, stored_config
from gfl_jax.errors import MissingFileError, UserError, storage_errors
from gfl_jax.files import MALFORMED
from gfl_jax.multihost import hosts

_LOG = logging.getLogger(__name__)
PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy')


@contextlib.contextmanager
def hold(workdir: str | os.PathLike) -> Iterator[None]:
  """Within it this run alone writes to the folder; all of its processes call it.

  Process 0 holds the lock of the folder, which is free again when that process ends,
  however it ends. Reading beside it, as evaluation does, needs no lock.

  Args:
    workdir: the run's folder, made if missing.

  Raises:
    UserError: another run writes there, or libraries cannot work in such a path.
    StorageError: the folder cannot be made.
  """
  if '://' in str(workdir):
    raise UserError(
      f'--workdir={workdir} is no folder: give one of a file system, for several hosts'
      ' of one that they share (NFS, Filestore), and copy finished runs to a bucket'
    )
  files.check_folder(workdir, '--workdir')
  path = pathlib.Path(workdir) / 'lock'
  with contextlib.ExitStack() as stack:

    def other() -> str | None:
      held = stack.enter_context(files.lock(path, wait=False))
      return None if held else files.holder(path)

    if writer := hosts.from_first(other):
      raise UserError(
        f'{writer}, trains in {workdir}: stop it first, or take another --workdir'
      )
    yield


def open_run(workdir: str | os.PathLike, config: ml_collections.ConfigDict) -> None:
  """Makes the folder of a new run, or checks that it belongs to the same config.

  Call it within `hold`. How often the run logs, evaluates and saves may change from
  start to start, and where its data lie, see `check_data`. A folder without a
  checkpoint and without a line of numbers holds nothing that another config could
  spoil: it is taken as new, and gets its config. What another one holds stays as it is
  until the start is known to be right: then `write_config` follows.

  Raises:
    ValueError: the folder holds a run of another config, or the processes were started
      with different ones, every difference is named; or they do not share the folder.
  """
  folder = pathlib.Path(workdir)
  now = json.loads(config.to_json())
  stored_file = folder / 'config.json'
  if jax.process_index() == 0:
    _open_as_first(folder, stored_file, now)
  first = hosts.from_first(lambda: now)
  if not stored_file.exists():
    raise UserError(
      f'{folder} is not there for process {jax.process_index()}: --workdir must be on a'
      ' file system that all hosts share'
    )
  if differing := differences(first, now):
    raise UserError(
      f'process {jax.process_index()} was started with another config than process 0.'
      ' They differ in:\n  ' + '\n  '.join(differing)
    )


def _open_as_first(
  folder: pathlib.Path, stored_file: pathlib.Path, now: dict[str, Any]
) -> None:
  numbers = has_checkpoints(folder) or files.read_json_lines(folder / 'metrics.jsonl')
  if not stored_file.exists() or not numbers:
    _write_config(folder, now)
    return
  with _named_in_errors(stored_file):
    stored = completed(json.loads(stored_file.read_text()))
  allowed = bookkeeping(now) | {'data': stored['data'] | _places(now)}
  differing = differences(stored | allowed | _extension(stored, now), now)
  if differing:
    more = now['epochs'] > stored['epochs']
    advice = '. For more epochs alone, see --extend in train.py --help' if more else ''
    raise UserError(
      f'{folder} holds a run of another config, whose numbers these would not continue:'
      ' take another --workdir, or give the same config to go on with'
      f' it{advice}. They differ in:\n  ' + '\n  '.join(differing)
    )


def has_checkpoints(workdir: str | os.PathLike) -> bool:
  """Whether a step is stored in a run's folder, which need not exist."""
  there = pathlib.Path(workdir).glob('checkpoints/*')
  return any(path.name.isdigit() for path in there)


def write_config(workdir: str | os.PathLike, config: ml_collections.ConfigDict) -> None:
  """Writes `config.json` and `env.json` (process 0 alone)."""
  if jax.process_index() == 0:
    _write_config(pathlib.Path(workdir), json.loads(config.to_json()))


def _write_config(folder: pathlib.Path, config: dict[str, Any]) -> None:
  with storage_errors(folder):
    folder.mkdir(parents=True, exist_ok=True)
    files.atomic_write(folder / 'env.json', json.dumps(_environment(), indent=2))
    files.atomic_write(folder / 'config.json', json.dumps(config, indent=2))


def _extension(stored: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
  """What may differ where `now` is the stored config extended once: see `extension`."""
  schedule, before = now['schedule'], stored['schedule']['extensions']
  for how in ('keep_rate', 'new_schedule'):
    if schedule['extensions'] == [*before, [stored['epochs'], how]]:
      kept = stored['schedule'] if how == 'keep_rate' else schedule
      kept = {**kept, 'extensions': schedule['extensions']}
      return {'epochs': now['epochs'], 'schedule': kept}
  return {}


def load_config(workdir: str | os.PathLike) -> Any:
  """The config of an existing run, a locked ConfigDict.

  Raises:
    FileNotFoundError: the folder is not a run's.
    ValueError: `config.json` is not whole.
  """
  file = pathlib.Path(workdir) / 'config.json'
  if not file.exists():
    raise MissingFileError(f'{workdir} is not the folder of a run: no config.json')
  with _named_in_errors(file):
    return stored_config(json.loads(file.read_text()))


def write_start(workdir: str | os.PathLike, config: Any, dataset: Any) -> None:
  """Writes what a run is: its config and environment, its data and its classes.

  Args:
    workdir: the run's folder.
    config: the run's.
    dataset: a `data.Dataset`.
  """
  write_config(workdir, config)
  if jax.process_index() == 0:
    text = json.dumps(_data_record(dataset.checksum))
    files.atomic_write(pathlib.Path(workdir) / 'data.json', text)
  write_classes(workdir, dataset.class_names, dataset.category_ids)


def check_dataset(workdir: str | os.PathLike, dataset: Any) -> None:
  """Checks that a data set is that of the run.

  Args:
    workdir: the run's folder.
    dataset: a `data.Dataset`.

  Raises:
    ValueError: other classes, as `check_classes`; other images or annotations,
      wherever they lie now; a `data.json` that is malformed.
  """
  check_classes(workdir, dataset.class_names)
  if not has_data(workdir, dataset.checksum):
    file = pathlib.Path(workdir) / 'data.json'
    raise UserError(
      f'the images or annotations are not those that {workdir} was trained with, as'
      f' {file} tells: take another --workdir, or those data. Delete {file} to go on'
      ' with the others all the same'
    )


def write_classes(
  workdir: str | os.PathLike, names: Sequence[str], category_ids: Sequence[int]
) -> None:
  """Writes `classes.json`: what the detector's classes are, for whoever uses it.

  Args:
    workdir: the run's folder.
    names: of class 0, 1, ...
    category_ids: the data set's own id of each class.
  """
  if jax.process_index() == 0:
    classes = {'names': list(names), 'category_ids': [int(i) for i in category_ids]}
    text = json.dumps(classes, indent=2)
    files.atomic_write(pathlib.Path(workdir) / 'classes.json', text)


def load_classes(workdir: str | os.PathLike) -> tuple[tuple[str, ...], tuple[int, ...]]:
  """Names and category ids of a run's classes, as `write_classes` wrote them.

  Raises:
    FileNotFoundError: the run has no `classes.json`.
    ValueError: it is not whole, or has not an id for each name.
  """
  file = pathlib.Path(workdir) / 'classes.json'
  if not file.exists():
    raise MissingFileError(
      f'{workdir} does not say what its classes are called: no classes.json. It has'
      ' the form {"names": ["cat", ...], "category_ids": [1, ...]}; scripts/train.py'
      ' writes it when the run is started again'
    )
  with _named_in_errors(file):
    classes = json.loads(file.read_text())
    return checked_classes(classes['names'], classes['category_ids'])


def check_classes(workdir: str | os.PathLike, names: Sequence[str]) -> None:
  """Checks that a data set has the classes that a run's detector was trained for.

  A folder without `classes.json` tells nothing: all is well.

  Args:
    workdir: the run's folder.
    names: of the data's class 0, 1, ...

  Raises:
    ValueError: other names, or another order; the first that differs is named.
  """
  if not (pathlib.Path(workdir) / 'classes.json').exists():
    return
  stored, _ = load_classes(workdir)
  pairs = enumerate(itertools.zip_longest(stored, names, fillvalue='(none)'))
  for number, (ours, theirs) in pairs:
    if ours != theirs:
      raise UserError(
        f'class {number} is {ours!r} in {workdir}/classes.json and {theirs!r} in the'
        ' data: the detector would be trained and evaluated for other classes. If it is'
        ' only called otherwise, write its name into classes.json'
      )


def has_data(workdir: str | os.PathLike, checksum: int) -> bool:
  """Whether data are those that a run began with; True where no `data.json` tells.

  Args:
    workdir: the run's folder.
    checksum: `Dataset.checksum` of the data.

  Raises:
    ValueError: the file is not whole.
  """
  file = pathlib.Path(workdir) / 'data.json'
  with _named_in_errors(file):
    return files.read_json(file) in ({}, _data_record(checksum))


def _data_record(checksum: int) -> dict[str, str]:
  return {'crc32': f'{checksum:08x}'}


def evaluated_aps(workdir: str | os.PathLike) -> dict[int, float | None]:
  """The AP of each step that `metrics.jsonl` has an evaluation of, by step.

  An AP is None if the data have no boxes. All processes get what process 0 reads: their
  views of a shared folder may be older.
  """

  def read() -> list[tuple[int, float | None]]:
    lines = files.read_json_lines(pathlib.Path(workdir) / 'metrics.jsonl')
    return [(line['step'], line['AP']) for line in lines if line['kind'] == 'eval']

  return dict(hosts.from_first(read))


def open_checkpoints(
  workdir: str | os.PathLike, *, read_only: bool = False
) -> Checkpoints:
  """The checkpoints of a run, of which those that its log has an AP of are evaluated.

  Args:
    workdir: the run's folder.
    read_only: as `Checkpoints` takes it.
  """
  folder = pathlib.Path(workdir) / 'checkpoints'
  return Checkpoints(folder, evaluated_aps(workdir), read_only=read_only)


def _places(config: dict[str, Any]) -> dict[str, Any]:
  return {name: config['data'][name] for name in ('path', 'data_dir')}


def bookkeeping(config: dict[str, Any]) -> dict[str, Any]:
  """The fields that may change from start to start: they change no parameter."""
  fields = ('log_every_steps', 'checkpoint_every_steps', 'eval_every_epochs')
  return {name: config[name] for name in (*fields, 'tensorboard')}


@contextlib.contextmanager
def _named_in_errors(file: pathlib.Path) -> Iterator[None]:
  """Names the file in an error of what it holds."""
  try:
    yield
  except MALFORMED as error:
    raise UserError(
      f'{file} is not what a run writes ({error!r}): put a whole copy there'
    ) from error


def _environment() -> dict[str, Any]:
  devices = jax.devices()
  return {
    'command': ' '.join(sys.argv),
    'python': platform.python_version(),
    'platform': platform.platform(),
    'cpu_count': os.cpu_count(),
    'devices': f'{len(devices)} x {devices[0].device_kind} ({devices[0].platform})',
    'processes': jax.process_count(),
    'versions': {name: importlib.metadata.version(name) for name in PACKAGES}
    | {'gfl-jax': __version__},
    'git': _git_revision(),
  }


def _git_revision() -> str:
  """Revision of the source, with '+changes' if it is not as committed."""
  here = pathlib.Path(__file__).parent
  run = lambda *args: subprocess.run(
    ['git', *args], cwd=here, capture_output=True, text=True, check=True
  ).stdout.strip()
  try:
    # An installed package may lie within the repository of something else.
    run('ls-files', '--error-unmatch', __file__)
    return run('rev-parse', 'HEAD') + ('+changes' if run('status', '-s') else '')
  except (OSError, subprocess.CalledProcessError):
    return 'unknown (no git checkout)'
