"""Evaluates a stored step of a run, even while the run is training."""

import os
import pathlib
from typing import Any

from gfl_jax.errors import UserError
from gfl_jax.training import run_folder
from gfl_jax.training.experiment import Experiment, load_dataset, write_report


def evaluate_run(
  workdir: str | os.PathLike,
  which: str,
  *,
  data_path: str = '',
  data_dir: str = '',
  out: str | os.PathLike = '',
) -> dict[str, Any]:
  """Metrics of a stored step; writes the evaluation's files and a report of it.

  No file of the training is changed. A folder that cannot be written, as on a full
  disk, is named in a warning.

  Args:
    workdir: the run's folder.
    which: 'newest', 'best' (highest AP so far) or a number of steps.
    data_path: replaces the config's `data.path`. It may hold other data of the same
      classes: a folder in COCO form or a file of scripts/prepare_data.py.
    data_dir: replaces the config's `data.data_dir`.
    out: folder of the files, made if missing; by default one in the run's
      `evaluations/`.

  Returns:
    The metrics; with other data than the run's, `other_data` is their path.

  Raises:
    FileNotFoundError: not the folder of a run.
    ValueError: no such step is stored; data that are not there, of other classes, or,
      without data_path, other than the run's.
    DamagedCheckpointError: it is stored, but cannot be read.
  """
  config = run_folder.load_config(workdir)
  _set_places(config.data, data_path, data_dir)
  with run_folder.open_checkpoints(workdir, read_only=True) as checkpoints:
    number = checkpoints.find(which)
    try:
      dataset = load_dataset(config)
    except UserError as error:
      raise UserError(
        f'the data of {workdir} ({_place(config.data)}) cannot be used: {error}. If'
        ' they were moved, give --data_path= or --data_dir=; both splits are needed'
      ) from error
    run_folder.check_classes(workdir, dataset.class_names)
    is_own = run_folder.has_data(workdir, dataset.checksum)
    if not is_own and not data_path:
      raise UserError(
        f'the data at {_place(config.data)} are not those that {workdir} was trained'
        ' with: give --data_path= of those, or, to evaluate on these, of these'
      )
    run = Experiment(config, dataset)
    state = checkpoints.restore(run.initial_state(pretrained=False), number)
  notes = {} if is_own else {'other_data': data_path}
  name = f'step_{number}' if is_own else f'step_{number}_{pathlib.Path(data_path).stem}'
  folder = pathlib.Path(out or pathlib.Path(workdir) / 'evaluations' / name)
  metrics = run.evaluate(state, folder, number, notes)
  write_report(workdir, folder)
  return metrics


def _set_places(config: Any, path: str, data_dir: str) -> None:
  """Sets where the data lie; the kind of data follows from what is there."""
  if path:
    config.path = path
    if pathlib.Path(path).is_file():
      config.name = 'file'
    elif (pathlib.Path(path) / 'annotations' / 'instances_val.json').is_file():
      config.name = 'coco_folder'
  if data_dir:
    config.data_dir = data_dir


def _place(config: Any) -> str:
  return f'{config.name}, path={config.path!r}, data_dir={config.data_dir!r}'
