"""Extending a finished run by more epochs."""

import os
from typing import Any

from gfl_jax.errors import UserError
from gfl_jax.training import run_folder


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
    ValueError: the config has no more epochs than the run. An unfinished run is refused
      by `loop.train`.
  """
  stored = run_folder.load_config(workdir)
  before = [tuple(extension) for extension in stored.schedule.extensions]
  if config.epochs > stored.epochs:
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
