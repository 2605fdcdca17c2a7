"""A trained detector: parameters, config and classes, ready to use or export."""

import dataclasses
import os
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gfl_jax.errors import UserError
from gfl_jax.evaluation import evaluator
from gfl_jax.evaluation.decode import Detections
from gfl_jax.models import build_detector
from gfl_jax.weights.trees import check_same, named_leaves, variable_shapes

# Finds the boxes of a batch, as `evaluator.make_detect` takes it, in NumPy.
Program = Callable[[Mapping[str, np.ndarray]], Detections]


@dataclasses.dataclass(frozen=True)
class Trained:
  """A detector with its parameters, config and classes.

  Attributes:
    config: the experiment's config, a locked ConfigDict.
    variables: of build_detector(config): {'params': ...} and, with frozen
      BatchNorm, 'batch_stats'.
    class_names: of class 0, 1, ...
    category_ids: the data set's own id of each class.
    origin: where it is from, for the record: 'run', 'step', 'weights' ('ema', 'raw').
  """

  config: Any
  variables: Mapping[str, Any]
  class_names: tuple[str, ...]
  category_ids: tuple[int, ...]
  origin: Mapping[str, Any]


def batch_shapes(size: Any, canvas: tuple[int, int]) -> dict[str, jax.ShapeDtypeStruct]:
  """Shapes and dtypes of a batch, as `evaluator.make_detect` takes it.

  Args:
    size: images in it; may be symbolic.
    canvas: (height, width) px.
  """
  return {
    'images': jax.ShapeDtypeStruct((size, *canvas, 3), jnp.uint8),
    'image_sizes': jax.ShapeDtypeStruct((size, 2), jnp.int32),
    'scales': jax.ShapeDtypeStruct((size, 2), jnp.float32),
  }


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
        ' classes: give each class a name, in classes.json of a run'
      )
    for name in ('canvas', 'short_side', 'max_long_side'):
      getattr(config.data, name)
    detector = build_detector(config)
    expected = variable_shapes(detector)
    # Traced to read every field that decoding needs; they are the same for any canvas.
    detect = evaluator.make_detect(detector, config)
    jax.eval_shape(detect, expected, batch_shapes(1, (64, 64)))
  except AttributeError as error:
    raise UserError(
      f'{source}: the config lacks a field ({error}), because another version of'
      ' gfl_jax wrote it: add the field to config.json of a run, as'
      ' configs/gfl_r50_fpn_1x_coco.py has it'
    ) from error
  check_same(named_leaves(trained.variables), expected, str(source))
