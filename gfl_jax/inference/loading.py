"""Trained detectors from the folder of a run or of an export."""

import os
import pathlib

from gfl_jax.errors import MissingFileError, UserError
from gfl_jax.export import manifest, params
from gfl_jax.weights.trained import Trained, check_trained


def load_run(
  path: str | os.PathLike, step: str | int | None = None, weights: str | None = None
) -> Trained:
  """The trained detector of a run.

  It reads only what it needs and changes nothing in the folder, so the run may still
  be training. The data set need not be there.

  Args:
    path: the run's folder.
    step: as `predictor.load` takes it; None is 'newest'.
    weights: as `predictor.load` takes them; None is 'ema'.

  Raises:
    FileNotFoundError: not the folder of a run, or one without names of its classes or
      without checkpoints.
    ValueError: no such step or weights; the parameters or the classes are not those of
      the config's detector; a config of another version.
    DamagedCheckpointError: the step is stored, but cannot be read.
  """
  # Not imported for an export, which needs neither training nor orbax.
  from gfl_jax.training import run_folder

  config = run_folder.load_config(path)
  names, category_ids = run_folder.load_classes(path)
  if not (pathlib.Path(path) / 'checkpoints').is_dir():
    raise MissingFileError(f'{path} has no checkpoints yet: train the run first')
  weights = weights or 'ema'
  with run_folder.open_checkpoints(path, read_only=True) as stored:
    number = stored.find('newest' if step is None else step)
    variables = stored.restore_variables(number, weights)
  averaged = weights == 'ema' and config.ema_decay > 0
  origin = {'run': str(path), 'step': number, 'weights': 'ema' if averaged else 'raw'}
  trained = Trained(config, variables, names, category_ids, origin)
  check_trained(trained, path)
  return trained


def load_trained(
  path: str | os.PathLike, *, step: str | int | None = None, weights: str | None = None
) -> Trained:
  """The trained detector of a run, or of an export that has its parameters.

  Args and errors are those of `predictor.load`; an export without parameters is a
  ValueError, too.
  """
  root = root_of(path, step=step, weights=weights)
  if root.is_file():
    return params.read(root)
  if (root / manifest.NAME).is_file():
    return params.load(root, manifest.read(root))
  return load_run(root, step, weights)


def root_of(
  path: str | os.PathLike, *, step: str | int | None = None, weights: str | None = None
) -> pathlib.Path:
  """What is read of a path: the folder of a run or of an export, or a single file.

  Args and errors are those of `predictor.load`.
  """
  root = path = pathlib.Path(path)
  if not path.exists():
    raise MissingFileError(f'{path} does not exist')
  if path.is_file() and (path.parent / manifest.NAME).is_file():
    root = path.parent
  elif path.is_file() and path.suffix != '.safetensors':
    raise MissingFileError(
      f'{path} is no file of an export: no {manifest.NAME} beside it'
    )
  is_export = root.is_file() or (root / manifest.NAME).is_file()
  if not is_export and not (root / 'config.json').is_file():
    raise MissingFileError(
      f'{path} is neither the folder of a run (no config.json) nor of an export (no'
      f' {manifest.NAME})'
    )
  if is_export and (step, weights) != (None, None):
    raise UserError(
      f'{root} is an export of one step, so {step=} and {weights=} cannot be chosen:'
      ' leave them out, or give the folder of a run'
    )
  return root
