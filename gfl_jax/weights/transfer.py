"""Trained detectors, of mmdetection or our own, as the start of another training."""

import dataclasses
import json
import logging
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gfl_jax import models
from gfl_jax.config import differences
from gfl_jax.errors import UserError
from gfl_jax.weights.class_names import choose_classes
from gfl_jax.weights.mmdet import PROJECT_OF_MMDET_1, from_mmdet, to_mmdet
from gfl_jax.weights.state_dicts import StateDict
from gfl_jax.weights.trained import Trained
from gfl_jax.weights.trees import check_same, named_leaves, variable_shapes

_LOG = logging.getLogger(__name__)
_CLASS_BIAS = 'bbox_head.gfl_cls.bias'
# The fields of a config that determine what a detector's parameters mean, and fields of
# its model that do not.
_MEANING = ('model.', 'data.mean:', 'data.std:', 'score.kind:', 'box.', 'points.')
_NO_MEANING = (
  *('model.num_classes:', 'model.dtype:', 'model.remat:'),
  *('model.backbone.frozen_stages:', 'model.backbone.pretrained:'),
  'model.head.prior_probability:',
)


def transfer(
  stored: StateDict | Trained, config: Any, *, class_names: str, new_head: bool
) -> Trained:
  """The detector of a config with the parameters of a trained one.

  Args:
    stored: a checkpoint of mmdet's GFL, from `read_state_dict`; or a run or export of
      ours, from `inference.loading.load_trained`.
    config: the experiment; it must describe the detector of the checkpoint. For mmdet
      mean and std of the images are not checked: its checkpoints do not hold them.
    class_names: as 'cat,dog', or a .json in COCO form; empty for the checkpoint's own.
      If the checkpoint names its classes, its order stays: a json only gives the
      category ids, and other names rename the classes.
    new_head: draws the class output anew, for the config's number of classes;
      class_names must be given.

  Returns:
    The detector; its `origin` names the checkpoint.

  Raises:
    FileNotFoundError: the json of class_names does not exist.
    ValueError: a checkpoint of another detector; classes without names, or with those
      of the checkpoint in another order.
  """
  if isinstance(stored, Trained):
    start = _from_ours(stored, config, new_head)
  else:
    start = _from_mmdet(stored, config, new_head)
  names, ids = start.class_names, start.category_ids
  if class_names or not ids:
    names, ids = choose_classes(class_names, names, start.origin['run'])
  count, found = config.model.num_classes, len(names)
  if found != count:
    advice = f'--config.model.num_classes={found}' if new_head else '--class_names='
    raise UserError(
      f'{found} names of classes ({", ".join(names[:10])}) for model.num_classes='
      f'{count}: give {advice}, one name for each'
    )
  return dataclasses.replace(start, class_names=names, category_ids=ids)


def _from_mmdet(stored: StateDict, config: Any, new_head: bool) -> Trained:
  arrays: Mapping[str, np.ndarray] = stored.arrays
  if PROJECT_OF_MMDET_1 in arrays and config.points.offset != 0.5:
    raise UserError(
      f'{stored.path} is of mmdet 1.x, whose points are the centers of the cells: give'
      ' --config.points.offset=0.5'
    )
  if new_head:
    drawn = {'params': {'head': {'class_output': _new_class_output(config)}}}
    arrays = {**arrays, **to_mmdet(drawn)}
  elif _CLASS_BIAS in arrays:
    _check_count(arrays[_CLASS_BIAS].size, config, stored.path)
  names = () if new_head else stored.class_names
  weights = 'ema' if stored.averaged else 'raw'
  origin = {'run': str(stored.path), 'weights': weights}
  return Trained(config, from_mmdet(arrays, config), names, (), origin)


def _from_ours(trained: Trained, config: Any, new_head: bool) -> Trained:
  source = trained.origin['run']
  params = dict(trained.variables['params'])
  if new_head:
    params['head'] = {**params['head'], 'class_output': _new_class_output(config)}
  else:
    _check_count(len(trained.class_names), config, source)
  variables = {**trained.variables, 'params': params}
  expected = variable_shapes(models.build_detector(config))
  configs = (json.loads(x.to_json()) for x in (trained.config, config))
  differing = [
    text
    for text in differences(*configs)
    if text.startswith(_MEANING) and not text.startswith(_NO_MEANING)
  ]
  try:
    check_same(named_leaves(variables), expected, source)
  except UserError as error:
    listed = '\n  '.join(['these fields differ', *differing])
    raise UserError(
      f'{source} is of another detector than the config: '
      + (listed if differing else str(error))
    ) from error
  if differing:
    _LOG.warning(
      '\n  '.join([f'{source} was trained with other values of these:', *differing])
    )
  names, ids = ((), ()) if new_head else (trained.class_names, trained.category_ids)
  return Trained(config, variables, names, ids, trained.origin)


def _check_count(found: int, config: Any, source: Any) -> None:
  count = config.model.num_classes
  if found != count:
    raise UserError(
      f'{source} has {found} classes, but model.num_classes={count}: give'
      f' --config.model.num_classes={found}; or, to train it for {count} other classes,'
      ' give --new_head and --class_names'
    )


def _new_class_output(config: Any) -> dict[str, jax.Array]:
  """The head's class output, drawn as for a training from scratch."""
  init = models.build_detector(config).init
  image = jnp.zeros((1, 64, 64, 3), jnp.float32)
  # Under jit the rest of the detector is neither drawn nor run.
  draw = jax.jit(lambda key: init(key, image)['params']['head']['class_output'])
  return draw(jax.random.key(config.seed))
