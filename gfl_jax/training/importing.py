"""Detectors that mmdetection trained, made into runs."""

import logging
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gfl_jax import files, models
from gfl_jax.data.coco_classes import COCO_CATEGORY_IDS, COCO_NAMES
from gfl_jax.deploy.state_dicts import StateDict
from gfl_jax.deploy.weights import PROJECT_OF_MMDET_1, from_mmdet, to_mmdet
from gfl_jax.errors import MissingFileError, UserError
from gfl_jax.training import run_folder, step
from gfl_jax.training.config_checks import check_config

_LOG = logging.getLogger(__name__)
_CLASS_BIAS = 'bbox_head.gfl_cls.bias'


def import_detector(
  stored: StateDict,
  workdir: str | os.PathLike,
  config: Any,
  *,
  class_names: str,
  new_head: bool,
) -> None:
  """Makes a run of a checkpoint of mmdet's GFL: its parameters are those of step 0.

  The run is one like any other: it can be evaluated, exported and used, and a training
  with the same config goes on from it: one meant for that gets the data and the epochs
  of the training now. The data set is not read.

  Args:
    stored: the checkpoint, from `read_state_dict`.
    workdir: the run's folder, made if missing.
    config: the experiment; it must describe the detector of the checkpoint. mean and
      std of the images are not checked: a checkpoint does not tell them.
    class_names: as 'cat,dog', or a .json in COCO form; empty: those of the checkpoint.
      Where the checkpoint tells them, in its order: a json gives the category ids
      alone, other names rename the classes.
    new_head: the layer that tells the classes apart is drawn anew, for the number of
      classes of the config; class_names must be given.

  Raises:
    FileNotFoundError: the json of class_names does not exist.
    ValueError: a config that cannot run; a folder that holds a checkpoint; a checkpoint
      of another detector; classes without names, or with those of the checkpoint in
      another order.
  """
  check_config(config)
  folder = pathlib.Path(workdir)
  if any(path.name.isdigit() for path in folder.glob('checkpoints/*')):
    raise UserError(f'{folder} holds a run already: take another --workdir')
  variables = _variables(stored, config, new_head)
  names, category_ids = _classes(
    class_names, () if new_head else stored.class_names, stored.path
  )
  count = config.model.num_classes
  if len(names) != count:
    advice = (
      f'--config.model.num_classes={len(names)}' if new_head else '--class_names='
    )
    raise UserError(
      f'{len(names)} names of classes ({", ".join(names[:10])}) for model.num_classes='
      f'{count}: give {advice}, one name for each'
    )
  with run_folder.hold(folder):
    run_folder.open_run(folder, config)
    run_folder.write_classes(folder, names, category_ids)
    with run_folder.open_checkpoints(folder) as checkpoints:
      checkpoints.save(0, step.create_state(variables, config))
  count = sum(x.size for x in jax.tree.leaves(variables['params']))
  kind = 'a running average' if stored.averaged else 'as they were trained'
  _LOG.info(
    '%s: %s parameters (%s), %d classes', folder, f'{count:,}', kind, len(names)
  )


def _variables(stored: StateDict, config: Any, new_head: bool) -> dict[str, Any]:
  """The detector's variables of mmdet's arrays."""
  arrays: Mapping[str, np.ndarray] = stored.arrays
  if PROJECT_OF_MMDET_1 in arrays and config.points.offset != 0.5:
    raise UserError(
      f'{stored.path} is of mmdet 1.x, whose points are the middles of the cells: give'
      ' --config.points.offset=0.5'
    )
  count = config.model.num_classes
  if new_head:
    arrays = {**arrays, **_new_class_output(config)}
  elif _CLASS_BIAS in arrays and arrays[_CLASS_BIAS].shape != (count,):
    found = arrays[_CLASS_BIAS].size
    raise UserError(
      f'{stored.path} tells {found} classes apart, model.num_classes={count}: give'
      f' --config.model.num_classes={found}; or, to train it for {count} others,'
      ' --new_head --class_names='
    )
  return from_mmdet(arrays, config)


def _new_class_output(config: Any) -> dict[str, np.ndarray]:
  """The head's class output as a training would draw it, under mmdet's names."""
  init = models.build_detector(config).init
  image = jnp.zeros((1, 64, 64, 3), jnp.float32)
  # Jitted, the rest of the detector is neither drawn nor run.
  draw = jax.jit(lambda key: init(key, image)['params']['head']['class_output'])
  head = {'class_output': draw(jax.random.key(config.seed))}
  return to_mmdet({'params': {'head': head}})


def _classes(
  given: str, stored: tuple[str, ...], checkpoint: Any
) -> tuple[tuple[str, ...], tuple[int, ...]]:
  """Names and category ids of the classes.

  The ids of COCO's own classes are COCO's, those of others 1, 2, ... where no json
  tells them.
  """
  stored = _without_underscores(stored)
  if given.endswith('.json'):
    names, ids = _categories(pathlib.Path(given))
  else:
    names = tuple(name.strip() for name in given.split(',')) if given else stored
    names, ids = _without_underscores(names), tuple(range(1, len(names) + 1))
    ids = COCO_CATEGORY_IDS if names == COCO_NAMES else ids
  if not names:
    raise UserError(
      f'{checkpoint} does not tell what its classes are called, or they are new: give'
      ' --class_names=cat,dog (one name for each) or --class_names=FILE.json in COCO'
      ' form'
    )
  for what, values in (('names of classes', names), ('category ids', ids)):
    wrong = {value for value in values if values.count(value) > 1 or value == ''}
    if wrong:
      raise UserError(f'{what} that are there twice or empty: {sorted(wrong)}')
  if not stored or names == stored:
    return names, ids
  if given.endswith('.json'):
    return stored, _ids_by_name(stored, dict(zip(names, ids, strict=True)), checkpoint)
  if set(names) == set(stored):
    raise UserError(
      f'--class_names={given} has the classes of {checkpoint} in another order, theirs'
      f' is {",".join(stored)}: leave --class_names out'
    )
  _LOG.warning('The classes %s are now called %s.', ', '.join(stored), ', '.join(names))
  return names, ids


def _without_underscores(names: tuple[str, ...]) -> tuple[str, ...]:
  """COCO's own names where they are those of mmdet 1.x, which wrote 'traffic_light'."""
  return (
    COCO_NAMES if tuple(x.replace('_', ' ') for x in names) == COCO_NAMES else names
  )


def _ids_by_name(
  stored: tuple[str, ...], ids: Mapping[str, int], checkpoint: Any
) -> tuple[int, ...]:
  """The category ids of a json for the checkpoint's classes, in its order."""
  if set(stored) != set(ids):
    raise UserError(
      f'the classes of the json are not those of {checkpoint}: the json alone has'
      f' {sorted(set(ids) - set(stored))}, the checkpoint alone'
      f' {sorted(set(stored) - set(ids))}; to train it for others, add --new_head'
    )
  return tuple(ids[name] for name in stored)


def _categories(path: pathlib.Path) -> tuple[tuple[str, ...], tuple[int, ...]]:
  """Names and ids of a json in COCO form, in its order, as a `coco_folder` has them."""
  if not path.is_file():
    raise MissingFileError(f'--class_names={path} does not exist')
  try:
    categories = files.read_json(path)['categories']
    return (
      tuple(str(category['name']).strip() for category in categories),
      tuple(int(category['id']) for category in categories),
    )
  except (ValueError, KeyError, TypeError) as error:
    raise UserError(
      f'--class_names={path} is not in COCO form: it needs a list "categories" of'
      ' {"id": 1, "name": "cat"}'
    ) from error
