"""A run's folder: its config, its data, its classes, and the lock of its writer."""

import contextlib
import itertools
import json
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import ml_collections

from gfl_jax import files
from gfl_jax.checkpointing.manager import Checkpoints
from gfl_jax.config import checked_classes, completed, differences, stored_config
from gfl_jax.errors import MissingFileError, UserError, storage_errors
from gfl_jax.files import MALFORMED
from gfl_jax.multihost import hosts
from gfl_jax.training import environment


@contextlib.contextmanager
def hold(workdir: str | os.PathLike) -> Iterator[None]:
  """Locks the folder: inside, no other run writes to it. All processes call it.

  Process 0 holds the lock. It is released when that process ends, however it ends.
  Readers, such as an evaluation, need no lock.

  Args:
    workdir: the run's folder, made if missing.

  Raises:
    UserError: another run writes there, or the libraries cannot use such a path.
    StorageError: the folder cannot be made.
  """
  if '://' in str(workdir):
    raise UserError(
      f'--workdir={workdir} is not a folder: give one of a file system, which several'
      ' hosts share, and copy finished runs to a bucket'
    )
  files.check_folder(workdir, '--workdir')
  path = pathlib.Path(workdir) / 'lock'
  with contextlib.ExitStack() as stack:

    def other_writer() -> str | None:
      held = stack.enter_context(files.lock(path, wait=False))
      return None if held else files.holder(path)

    if writer := hosts.from_first(other_writer):
      raise UserError(
        f'{writer}, trains in {workdir}: stop it first, or give another --workdir'
      )
    yield


def open_run(workdir: str | os.PathLike, config: ml_collections.ConfigDict) -> None:
  """Makes the folder of a new run, or checks that it belongs to the same config.

  Call it inside `hold`. Two starts of a run may differ in how often it logs, evaluates
  and saves, and in where its data lie. A folder without a checkpoint and without a
  logged line counts as new and gets this config. Any other folder is left unchanged:
  `write_start` follows when this start is known to be right.

  Raises:
    ValueError: the folder holds a run of another config, or the processes were started
      with different ones (every difference is named), or they do not share the folder.
  """
  folder = pathlib.Path(workdir)
  given = json.loads(config.to_json())
  if jax.process_index() == 0:
    _check_stored_config(folder, given)
  first = hosts.from_first(lambda: given)
  if not (folder / 'config.json').exists():
    raise UserError(
      f'process {jax.process_index()} does not see {folder}: give a --workdir on a'
      ' file system that all hosts share'
    )
  if differing := differences(first, given):
    raise UserError(
      f'process {jax.process_index()} was started with another config than process 0.'
      ' They differ in:\n  ' + '\n  '.join(differing)
    )


def _check_stored_config(folder: pathlib.Path, given: dict[str, Any]) -> None:
  file = folder / 'config.json'
  is_used = has_checkpoints(folder) or files.read_json_lines(folder / 'metrics.jsonl')
  if not file.exists() or not is_used:
    _write_config(folder, given)
    return
  with _names_file(file):
    stored = completed(json.loads(file.read_text()))
  places = {name: given['data'][name] for name in ('path', 'data_dir')}
  allowed = bookkeeping(given) | {'data': stored['data'] | places}
  allowed |= _extension(stored, given)
  if differing := differences(stored | allowed, given):
    more = given['epochs'] > stored['epochs']
    advice = '. To add epochs, see --extend in train.py --help' if more else ''
    raise UserError(
      f'{folder} holds a run of another config: give another --workdir, or the same'
      f' config to continue that run{advice}. They differ in:\n  '
      + '\n  '.join(differing)
    )


def _extension(stored: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
  """Fields that may differ because `given` extends the stored run; see extension.py."""
  schedule, before = given['schedule'], stored['schedule']['extensions']
  for kind in ('keep_rate', 'new_schedule'):
    if schedule['extensions'] == [*before, [stored['epochs'], kind]]:
      kept = stored['schedule'] if kind == 'keep_rate' else schedule
      kept = {**kept, 'extensions': schedule['extensions']}
      return {'epochs': given['epochs'], 'schedule': kept}
  return {}


def bookkeeping(config: dict[str, Any]) -> dict[str, Any]:
  """The fields that may differ between two starts: they change no parameter."""
  fields = ('log_every_steps', 'checkpoint_every_steps', 'eval_every_epochs')
  return {name: config[name] for name in (*fields, 'tensorboard')}


def has_checkpoints(workdir: str | os.PathLike) -> bool:
  """Whether a step is stored in a run's folder, which need not exist."""
  return any(p.name.isdigit() for p in pathlib.Path(workdir).glob('checkpoints/*'))


def write_start(workdir: str | os.PathLike, config: Any, dataset: Any) -> None:
  """Writes the run's config, environment, data and classes, on process 0.

  Args:
    workdir: the run's folder.
    config: the run's.
    dataset: a `data.Dataset`.
  """
  if jax.process_index() == 0:
    folder = pathlib.Path(workdir)
    _write_config(folder, json.loads(config.to_json()))
    files.atomic_write(folder / 'data.json', json.dumps(_data_record(dataset.checksum)))
    write_classes(folder, dataset.class_names, dataset.category_ids)


def _write_config(folder: pathlib.Path, config: dict[str, Any]) -> None:
  with storage_errors(folder):
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(environment.describe(), indent=2)
    files.atomic_write(folder / 'env.json', text)
    files.atomic_write(folder / 'config.json', json.dumps(config, indent=2))


def load_config(workdir: str | os.PathLike) -> Any:
  """The config of an existing run, a locked ConfigDict.

  Raises:
    FileNotFoundError: the folder is not a run's.
    ValueError: `config.json` is malformed.
  """
  file = pathlib.Path(workdir) / 'config.json'
  if not file.exists():
    raise MissingFileError(f'{workdir} is not the folder of a run: no config.json')
  with _names_file(file):
    return stored_config(json.loads(file.read_text()))


def check_dataset(workdir: str | os.PathLike, dataset: Any) -> None:
  """Checks that a data set is the one that the run was trained with.

  Args:
    workdir: the run's folder.
    dataset: a `data.Dataset`.

  Raises:
    ValueError: other classes, as in `check_classes`; other images or annotations,
      wherever they lie now; a malformed `data.json`.
  """
  check_classes(workdir, dataset.class_names)
  if not has_data(workdir, dataset.checksum):
    file = pathlib.Path(workdir) / 'data.json'
    raise UserError(
      f'these are not the images and annotations that {workdir} was trained with (their'
      f' checksum is not that of {file}): give those, or another --workdir. Delete'
      f' {file} to continue with the new data anyway'
    )


def has_data(workdir: str | os.PathLike, checksum: int) -> bool:
  """Whether the run was trained with these data; True if it has no `data.json`.

  Args:
    workdir: the run's folder.
    checksum: `Dataset.checksum` of the data.

  Raises:
    ValueError: the file is malformed.
  """
  file = pathlib.Path(workdir) / 'data.json'
  with _names_file(file):
    return files.read_json(file) in ({}, _data_record(checksum))


def _data_record(checksum: int) -> dict[str, str]:
  return {'crc32': f'{checksum:08x}'}


def write_classes(
  workdir: str | os.PathLike, names: Sequence[str], category_ids: Sequence[int]
) -> None:
  """Writes `classes.json`: the names of the detector's classes, for its users.

  Args:
    workdir: the run's folder.
    names: of class 0, 1, ...
    category_ids: the data set's own id of each class.
  """
  classes = {'names': list(names), 'category_ids': [int(i) for i in category_ids]}
  text = json.dumps(classes, indent=2)
  files.atomic_write(pathlib.Path(workdir) / 'classes.json', text)


def load_classes(workdir: str | os.PathLike) -> tuple[tuple[str, ...], tuple[int, ...]]:
  """Names and category ids of a run's classes, as `write_classes` wrote them.

  Raises:
    FileNotFoundError: the run has no `classes.json`.
    ValueError: it is malformed, or has not one id for each name.
  """
  file = pathlib.Path(workdir) / 'classes.json'
  if not file.exists():
    raise MissingFileError(
      f'{workdir} has no classes.json with the names of its classes. Start'
      ' scripts/train.py again, which writes it, or write it yourself:'
      ' {"names": ["cat", ...], "category_ids": [1, ...]}'
    )
  with _names_file(file):
    classes = json.loads(file.read_text())
    return checked_classes(classes['names'], classes['category_ids'])


def check_classes(workdir: str | os.PathLike, names: Sequence[str]) -> None:
  """Checks that a data set has the run's classes; without `classes.json` it passes.

  Args:
    workdir: the run's folder.
    names: of the data's class 0, 1, ...

  Raises:
    ValueError: other names, or another order; the first that differs is named.
  """
  if not (pathlib.Path(workdir) / 'classes.json').exists():
    return
  stored, _ = load_classes(workdir)
  pairs = itertools.zip_longest(stored, names, fillvalue='(none)')
  for number, (ours, theirs) in enumerate(pairs):
    if ours != theirs:
      raise UserError(
        f'class {number} is {ours!r} in {workdir}/classes.json and {theirs!r} in the'
        ' data. If it is the same class with a new name, write that name into'
        ' classes.json'
      )


def open_checkpoints(
  workdir: str | os.PathLike, *, read_only: bool = False
) -> Checkpoints:
  """The checkpoints of a run; a step whose AP is logged counts as evaluated.

  Args:
    workdir: the run's folder.
    read_only: as `Checkpoints` takes it.
  """
  folder = pathlib.Path(workdir) / 'checkpoints'
  return Checkpoints(folder, evaluated_aps(workdir), read_only=read_only)


def evaluated_aps(workdir: str | os.PathLike) -> dict[int, float | None]:
  """The AP of each step that `metrics.jsonl` has an evaluation of; None without boxes.

  All processes get what process 0 reads: a shared folder may look older to others.
  """
  file = pathlib.Path(workdir) / 'metrics.jsonl'
  evals = lambda: [x for x in files.read_json_lines(file) if x['kind'] == 'eval']
  return dict(hosts.from_first(lambda: [(x['step'], x['AP']) for x in evals()]))


@contextlib.contextmanager
def _names_file(file: pathlib.Path) -> Iterator[None]:
  """Names the file in the error if its content is malformed."""
  try:
    yield
  except MALFORMED as error:
    raise UserError(
      f'{file} is malformed ({error!r}): replace it by an intact copy'
    ) from error
