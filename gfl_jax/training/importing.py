"""Trained detectors, of mmdetection or our own, made into runs."""

import json
import logging
import os
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gfl_jax import files, models
from gfl_jax.config import differences
from gfl_jax.data.coco_classes import COCO_CATEGORY_IDS, COCO_NAMES
from gfl_jax.errors import MissingFileError, UserError
from gfl_jax.training import run_folder, step
from gfl_jax.training.config_checks import check_config
from gfl_jax.weights.mmdet import PROJECT_OF_MMDET_1, from_mmdet, to_mmdet
from gfl_jax.weights.state_dicts import StateDict
from gfl_jax.weights.trained import Trained
from gfl_jax.weights.trees import check_same, named_leaves

_LOG = logging.getLogger(__name__)
_CLASS_BIAS = 'bbox_head.gfl_cls.bias'


class _Start(NamedTuple):
  """What a run begins with.

  Attributes:
    variables: of the detector.
    class_names: of the checkpoint's classes; empty if it does not tell.
    category_ids: of these; empty if it does not tell.
    source: where it is from.
    kind: what its parameters are, in words.
  """

  variables: dict[str, Any]
  class_names: tuple[str, ...]
  category_ids: tuple[int, ...]
  source: Any
  kind: str


def import_detector(
  stored: StateDict | Trained,
  workdir: str | os.PathLike,
  config: Any,
  *,
  class_names: str,
  new_head: bool,
) -> None:
  """Makes a run of a trained detector: its parameters are those of step 0.

  The run is one like any other: it can be evaluated, exported and used, and a training
  with the same config goes on from it: one meant for that gets the data and the epochs
  of the training now. The data set is not read.

  Args:
    stored: a checkpoint of mmdet's GFL, from `read_state_dict`; or a run or export of
      ours, from `inference.runs.load_trained`.
    workdir: the run's folder, made if missing.
    config: the experiment; it must describe the detector of the checkpoint. mean and
      std of the images are not checked: a checkpoint of mmdet does not tell them.
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
  if isinstance(stored, Trained):
    start = _of_ours(stored, config, new_head)
  else:
    start = _of_mmdet(stored, config, new_head)
  if start.category_ids and not class_names:
    names, category_ids = start.class_names, start.category_ids
  else:
    names, category_ids = _classes(class_names, start.class_names, start.source)
  count = config.model.num_classes
  if len(names) != count:
    advice = (
      f'--config.model.num_classes={len(names)}' if new_head else '--class_names='
    )
    raise UserError(
      f'{len(names)} names of classes ({", ".join(names[:10])}) for model.num_classes='
      f'{count}: give {advice}, one name for each'
    )
  folder = pathlib.Path(workdir)
  with run_folder.hold(workdir):
    if run_folder.has_checkpoints(folder):
      raise UserError(f'{folder} holds a run already: take another --workdir')
    run_folder.open_run(folder, config)
    run_folder.write_classes(folder, names, category_ids)
    with run_folder.open_checkpoints(folder) as checkpoints:
      checkpoints.save(0, step.create_state(start.variables, config))
  count = sum(x.size for x in jax.tree.leaves(start.variables['params']))
  _LOG.info(
    '%s: %s parameters (%s), %d classes', folder, f'{count:,}', start.kind, len(names)
  )


def _of_mmdet(stored: StateDict, config: Any, new_head: bool) -> _Start:
  arrays: Mapping[str, np.ndarray] = stored.arrays
  if PROJECT_OF_MMDET_1 in arrays and config.points.offset != 0.5:
    raise UserError(
      f'{stored.path} is of mmdet 1.x, whose points are the middles of the cells: give'
      ' --config.points.offset=0.5'
    )
  if new_head:
    drawn = {'params': {'head': {'class_output': _new_class_output(config)}}}
    arrays = {**arrays, **to_mmdet(drawn)}
  elif _CLASS_BIAS in arrays:
    _check_count(arrays[_CLASS_BIAS].size, config, stored.path)
  names = () if new_head else stored.class_names
  kind = 'a running average' if stored.averaged else 'as they were trained'
  return _Start(from_mmdet(arrays, config), names, (), stored.path, kind)


def _of_ours(trained: Trained, config: Any, new_head: bool) -> _Start:
  source = trained.origin['run']
  params = dict(trained.variables['params'])
  if new_head:
    params['head'] = {**params['head'], 'class_output': _new_class_output(config)}
  else:
    _check_count(len(trained.class_names), config, source)
  variables = {**trained.variables, 'params': params}
  image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
  init = models.build_detector(config).init
  expected = jax.eval_shape(init, jax.random.key(0), image)
  differing = differences(_meaning(trained.config), _meaning(config))
  try:
    check_same(named_leaves(variables), expected, source)
  except UserError as error:
    raise UserError(
      f'{source} is of another detector than the config: '
      + ('\n  '.join(['these differ', *differing]) if differing else str(error))
    ) from error
  if differing:
    _LOG.warning(
      '\n  '.join([f'{source} was trained with other values than these:', *differing])
    )
  kind = f'step {trained.origin["step"]}, {trained.origin["weights"]}'
  names, ids = ((), ()) if new_head else (trained.class_names, trained.category_ids)
  return _Start(variables, names, ids, source, kind)


def _meaning(config: Any) -> dict[str, Any]:
  """The fields of a config that say what a detector's parameters mean."""
  values = json.loads(config.to_json())
  model, data = values['model'], values['data']
  for name in ('num_classes', 'dtype', 'remat'):
    model.pop(name, None)
  for name in ('frozen_stages', 'pretrained'):
    model['backbone'].pop(name, None)
  model['head'].pop('prior_probability', None)
  return {
    'model': model,
    'data': {name: data[name] for name in ('mean', 'std')},
    'score': {'kind': values['score']['kind']},
    **{name: values[name] for name in ('box', 'points')},
  }


def _check_count(found: int, config: Any, source: Any) -> None:
  count = config.model.num_classes
  if found != count:
    raise UserError(
      f'{source} tells {found} classes apart, model.num_classes={count}: give'
      f' --config.model.num_classes={found}; or, to train it for {count} others,'
      ' --new_head --class_names='
    )


def _new_class_output(config: Any) -> dict[str, jax.Array]:
  """The head's class output as a training would draw it."""
  init = models.build_detector(config).init
  image = jnp.zeros((1, 64, 64, 3), jnp.float32)
  # Jitted, the rest of the detector is neither drawn nor run.
  draw = jax.jit(lambda key: init(key, image)['params']['head']['class_output'])
  return draw(jax.random.key(config.seed))


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
