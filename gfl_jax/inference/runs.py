"""A run's folder as a trained detector, and a trained detector as a program."""

import os
import pathlib
from collections.abc import Mapping

import jax
import numpy as np

from gfl_jax.errors import MissingFileError
from gfl_jax.export import manifest, params, programs
from gfl_jax.inference import predictor
from gfl_jax.training import run_folder
from gfl_jax.weights.trained import Found, Program, Trained, check_trained


def load_run(
  path: str | os.PathLike, step: str | int = 'newest', weights: str = 'ema'
) -> Trained:
  """The trained detector of a run.

  Reads what it needs of the folder and changes nothing there, so the run may be
  training. The data set need not be there.

  Args:
    path: the run's folder.
    step: 'newest', 'best' (highest AP so far) or a number of steps.
    weights: 'ema', the running average of the parameters, or the parameters themselves
      where the run has no average; 'raw', the parameters themselves.

  Raises:
    FileNotFoundError: not the folder of a run, or one without names of its classes or
      without checkpoints.
    ValueError: no such step or weights; the parameters or the classes are not those of
      the config's detector; a config of another version.
    DamagedCheckpointError: the step is stored, but cannot be read.
  """
  config = run_folder.load_config(path)
  names, category_ids = run_folder.load_classes(path)
  if not (pathlib.Path(path) / 'checkpoints').is_dir():
    raise MissingFileError(f'{path} has no checkpoints: has its training begun?')
  with run_folder.open_checkpoints(path, read_only=True) as stored:
    number = stored.find(step)
    averaged = weights == 'ema' and config.ema_decay > 0
    variables = stored.restore_variables(number, weights)
  origin = {
    'run': str(path),
    'step': number,
    'weights': 'ema' if averaged else 'raw',
  }
  trained = Trained(config, variables, names, category_ids, origin)
  check_trained(trained, path)
  return trained


def load_trained(
  path: str | os.PathLike, *, step: str | int | None = None, weights: str | None = None
) -> Trained:
  """The trained detector of a run, or of an export that has its parameters.

  Args:
    path: as `predictor.load` takes it.
    step: of a run, as there.
    weights: of a run, as there.

  Raises:
    FileNotFoundError, ValueError: as `predictor.load`; an export without parameters.
  """
  root = predictor.root_of(path)
  chosen = predictor.choice(root, step=step, weights=weights)
  if root.is_file():
    return params.read(root)
  if (root / manifest.NAME).is_file():
    return params.load(root, manifest.read(root))
  return load_run(root, **chosen)


def make_program(trained: Trained) -> Program:
  """A detector as a program: a batch as `evaluator.make_detect` takes it -> `Found`.

  It is compiled at the first batch of each shape.
  """
  detect = jax.jit(programs.make_function(trained.config))
  variables = jax.device_put(trained.variables)

  def program(batch: Mapping[str, np.ndarray]) -> Found:
    return Found(**jax.device_get(detect(variables, dict(batch))))

  return program
