"""A trained detector: what every export is made of, and what every use begins with."""

import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import Any

import ml_collections
import numpy as np
from jaxtyping import Bool, Float, Int

from gfl_jax.errors import UserError

# What a file raises that is not what was written, where its content is taken apart.
NOT_WHOLE = (
  json.JSONDecodeError,
  UnicodeDecodeError,
  KeyError,
  TypeError,
  AttributeError,
)


@dataclasses.dataclass(frozen=True)
class Trained:
  """A detector with its parameters, and what is needed to use it.

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


@dataclasses.dataclass(frozen=True)
class Found:
  """What a program finds in a batch, as numpy arrays: N slots for each of B images.

  Attributes:
    boxes: xyxy in px of the original image, by falling score; unused slots are zero.
    scores: in (0, 1].
    classes: 0..C-1.
    valid: False for an unused slot.
    edge_std: standard deviation of each side (left, top, right, bottom), in original
      px.
  """

  boxes: Float[np.ndarray, 'b n 4']
  scores: Float[np.ndarray, 'b n']
  classes: Int[np.ndarray, 'b n']
  valid: Bool[np.ndarray, 'b n']
  edge_std: Float[np.ndarray, 'b n 4']


# A batch as `evaluator.make_detect` takes it, in numpy, to what is found in it.
Program = Callable[[Mapping[str, np.ndarray]], Found]


def completed(values: Mapping[str, Any]) -> dict[str, Any]:
  """A stored config in today's form: fields younger than it are set to what it did.

  Args:
    values: an experiment's config as JSON kept it.

  Raises:
    ValueError: of `box` or `score`, which older files have in `model`, too, the two
      differ: no config describes what was trained then.
  """
  model = dict(values['model'])
  model.setdefault('remat', [])
  for name in ('box', 'score'):
    copy = model.pop(name, None)
    if copy is not None and copy != values[name]:
      raise UserError(
        f'the stored config has {name}={values[name]} and model.{name}={copy}: the'
        ' network has the outputs of the second, but was trained as if it had those of'
        ' the first. Train it again'
      )
  data, schedule = dict(values['data']), dict(values['schedule'])
  data.setdefault('keep_empty', False)
  schedule.setdefault('extensions', [])
  return {**values, 'model': model, 'data': data, 'schedule': schedule}


def stored_config(values: Mapping[str, Any]) -> Any:
  """The config of an experiment from what JSON kept of it, a locked ConfigDict."""
  return ml_collections.ConfigDict(completed(values)).lock()
