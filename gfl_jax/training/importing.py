"""Trained detectors, of mmdetection or our own, written as runs."""

import logging
import os
import pathlib
from typing import Any

import jax

from gfl_jax.errors import UserError
from gfl_jax.training import run_folder, step
from gfl_jax.training.config_checks import check_config
from gfl_jax.weights.state_dicts import StateDict
from gfl_jax.weights.trained import Trained
from gfl_jax.weights.transfer import transfer

_LOG = logging.getLogger(__name__)


def import_detector(
  stored: StateDict | Trained,
  workdir: str | os.PathLike,
  config: Any,
  *,
  class_names: str,
  new_head: bool,
) -> None:
  """Makes a run whose parameters at step 0 are those of a trained detector.

  The run can be evaluated, exported and used like any other, and a training with the
  same config continues from it. The data set is not read.

  Args:
    stored: the trained detector, as `transfer` takes it.
    workdir: the run's folder, made if missing.
    config: the experiment; it must describe the detector of the checkpoint.
    class_names: as `transfer` takes them.
    new_head: as `transfer` takes it.

  Raises:
    FileNotFoundError: the json of class_names does not exist.
    ValueError: a config that cannot run; what `transfer` raises; a folder that holds a
      checkpoint.
  """
  check_config(config)
  trained = transfer(stored, config, class_names=class_names, new_head=new_head)
  folder, names = pathlib.Path(workdir), trained.class_names
  with run_folder.hold(workdir):
    if run_folder.has_checkpoints(folder):
      raise UserError(f'{folder} holds a run already: take another --workdir')
    run_folder.open_run(folder, config)
    run_folder.write_classes(folder, names, trained.category_ids)
    with run_folder.open_checkpoints(folder) as checkpoints:
      checkpoints.save(0, step.create_state(dict(trained.variables), config))
  count = sum(x.size for x in jax.tree.leaves(trained.variables['params']))
  origin = ', '.join(f'{name} {value}' for name, value in trained.origin.items())
  _LOG.info('%s: %d parameters (%s), %d classes', folder, count, origin, len(names))
