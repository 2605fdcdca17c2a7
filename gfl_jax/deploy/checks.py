"""Whether what was stored of a detector fits together, before it is used."""

import os
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gfl_jax.deploy.trained import Trained
from gfl_jax.errors import UserError
from gfl_jax.evaluation import decode
from gfl_jax.models import build_detector, make_anchors, network_input

_SIDE = 64  # px: parameters and the config's fields are the same for any canvas


def check_trained(trained: Trained, source: str | os.PathLike) -> None:
  """Checks that a detector can be used; nothing is computed.

  Args:
    trained: as it was stored.
    source: where it was read, for the error.

  Raises:
    ValueError: parameters that are not those of the config's detector, another number
      of classes than the config's, or a config without a field that is read.
  """
  config = trained.config
  try:
    names, num_classes = trained.class_names, config.model.num_classes
    if len(names) != num_classes:
      raise UserError(
        f'{source} has model.num_classes={num_classes} and {len(names)} names of'
        ' classes: in classes.json of a run, write what each class is called'
      )
    for name in ('canvas', 'short_side', 'max_long_side'):
      getattr(config.data, name)
    detector = build_detector(config)

    def init_and_detect(key, batch):
      images = network_input(config, batch)
      predictions, variables = detector.init_with_output(key, images, train=False)
      points = make_anchors(config, images.shape[1:3])
      # Traced for what it reads of the config.
      decode.decode_detections(
        predictions, points, batch['image_sizes'], config, scale_factors=batch['scales']
      )
      return variables

    batch = {
      'images': jax.ShapeDtypeStruct((1, _SIDE, _SIDE, 3), jnp.uint8),
      'image_sizes': jax.ShapeDtypeStruct((1, 2), jnp.int32),
      'scales': jax.ShapeDtypeStruct((1, 2), jnp.float32),
    }
    expected = jax.eval_shape(init_and_detect, jax.random.key(0), batch)
  except AttributeError as error:
    raise UserError(
      f'{source}: the config lacks a field ({error}): another version of gfl_jax wrote'
      ' it; in config.json of a run, add the field as configs/gfl_r50_fpn_1x_coco.py'
      ' has it'
    ) from error
  check_same(named_leaves(trained.variables), expected, str(source))


def checked_classes(
  names: Any, category_ids: Any
) -> tuple[tuple[str, ...], tuple[int, ...]]:
  """Names and category ids of classes, as a JSON file has them, once they are that.

  Raises:
    TypeError: no lists of strings and of whole numbers, or not of one length.
  """
  for what, values, kind in (
    ('names', names, str),
    ('category_ids', category_ids, int),
  ):
    if not isinstance(values, list) or not all(isinstance(x, kind) for x in values):
      raise TypeError(f'its {what} are no list of {kind.__name__}')
  if len(names) != len(category_ids):
    raise TypeError(f'it has {len(names)} names and {len(category_ids)} category_ids')
  return tuple(names), tuple(category_ids)


def check_same(stored: Mapping[str, Any], target: Any, source: str) -> None:
  """Checks that stored leaves are those of a tree.

  Args:
    stored: by name, as 'params.neck.output0.kernel'.
    target: a tree of arrays, or of their shapes and dtypes.
    source: where they were stored, for the error.

  Raises:
    ValueError: leaves whose name, shape or dtype differ; the first ten are named.
  """
  target = named_leaves(target)
  describe = lambda x: f'{np.dtype(x.dtype)}{list(x.shape)}'
  differing = [
    f'{name}: stored {describe(stored[name]) if name in stored else "nothing"},'
    f' expected {describe(target[name]) if name in target else "nothing"}'
    for name in sorted(stored.keys() | target.keys())
    if name not in stored
    or name not in target
    or describe(stored[name]) != describe(target[name])
  ]
  if differing:
    raise UserError(
      f'{source} belongs to another model or optimiser; {len(differing)} leaves'
      ' differ:\n  ' + '\n  '.join(differing[:10])
    )


def named_leaves(tree: Any) -> dict[str, Any]:
  """The leaves of a tree by name, as 'params.neck.output0.kernel'."""
  leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
  name = lambda path: jax.tree_util.keystr(path, simple=True, separator='.')
  return {name(path): leaf for path, leaf in leaves}
