"""Extending a finished run by more epochs."""

import os
import pathlib
from typing import Any

from gfl_jax import files
from gfl_jax.errors import UserError
from gfl_jax.training import optimizer, run_folder


def extended(config: Any, workdir: str | os.PathLike, how: str) -> Any:
  """The config that extends a finished run to the config's epochs.

  Args:
    config: the run's, with more epochs and, for 'new_schedule', other values in
      `schedule` if wanted; or the same config again, to resume the extended run.
    workdir: the run's folder.
    how: the learning rate of the new epochs: 'keep_rate', that of the run's last step;
      'new_schedule', what the config's schedule gives for them.

  Returns:
    A copy with the extension in `schedule.extensions`; give it to `loop.train`.

  Raises:
    FileNotFoundError: not the folder of a run.
    ValueError: the run is not finished, or the config has no more epochs than it.
  """
  stored = run_folder.load_config(workdir)
  before = [tuple(extension) for extension in stored.schedule.extensions]
  if config.epochs > stored.epochs:
    _check_finished(workdir, stored)
    before.append((stored.epochs, how))
  elif config.epochs < stored.epochs or not before or before[-1][1] != how:
    last = f', the last by --extend={before[-1][1]}' if before else ''
    raise UserError(
      f'--extend={how}: the run in {workdir} is one of {stored.epochs} epochs{last}:'
      f' give more of them, --config.epochs={config.epochs} is not'
    )
  config = config.copy_and_resolve_references()
  config.schedule.extensions = tuple(before)
  return config


def _check_finished(workdir: str | os.PathLike, stored: Any) -> None:
  folder = pathlib.Path(workdir)
  lines = files.read_json_lines(folder / 'metrics.jsonl')
  trained = [line for line in lines if line['kind'] == 'train']
  names = [path.name for path in folder.glob('checkpoints/*')]
  newest = max((int(name) for name in names if name.isdigit()), default=0)
  per_epoch = round(trained[-1]['step'] / trained[-1]['epoch']) if trained else 0
  wanted = optimizer.num_train_steps(stored, per_epoch)
  if not trained or newest < wanted:
    raise UserError(
      f'the run in {workdir} is not finished, its newest step is'
      f' {newest}: train it to its end first, without --extend and with'
      f' --config.epochs={stored.epochs}'
    )
