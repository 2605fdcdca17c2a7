"""What the runs of one process share: data sets, and compiled programs."""

import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp

from gfl_jax import data, models
from gfl_jax.evaluation import evaluator
from gfl_jax.training import step
from gfl_jax.training.parallel import DataParallel


class Parts(NamedTuple):
  """What a config says to compute; compiled at the first call.

  Attributes:
    detector: the Flax module.
    update: (state, batch) -> (state, scalars).
    predict: (variables, batch) -> PredictOutput.
  """

  detector: Any
  update: Callable
  predict: Callable


class Programs:
  """Keeps each data set and each program, and hands it to the next run that needs it.

  A single run shares nothing, and its config is constants of its programs. In a study
  the numbers that its runs differ in are arguments of the step instead, so that one
  program serves them all.
  """

  def __init__(self, traced: Sequence[str] = ()):
    """Args: traced: names in `step.TRACEABLE`, as 'class_loss.beta'.

    Raises: ValueError: a name that is not there.
    """
    unknown = sorted(set(traced) - set(step.TRACEABLE))
    if unknown:
      raise ValueError(f'{unknown} are no numbers of {list(step.TRACEABLE)}')
    self._traced = tuple(traced)
    self._datasets: dict[str, data.Dataset] = {}
    self._programs: dict[str, tuple[Any, Callable, Callable]] = {}

  def dataset(self, data_config: Any) -> data.Dataset:
    """`data.load` of a config's `data`, read once."""
    key = data_config.to_json_best_effort(sort_keys=True)
    if key not in self._datasets:
      self._datasets[key] = data.load(data_config)
    return self._datasets[key]

  def parts(self, config: Any, devices: DataParallel, steps_per_epoch: int) -> Parts:
    """The programs of a config on some devices."""
    numbers = {name: _lookup(config, name) for name in self._traced}
    key = self._key(config, devices, steps_per_epoch)
    if key not in self._programs:
      detector = models.build_detector(config.model)
      train_step = step.make_train_step(
        detector, config, steps_per_epoch=steps_per_epoch
      )
      predict = evaluator.make_predict(detector, config)
      self._programs[key] = (
        detector,
        devices.update(train_step),
        devices.predict(predict),
      )
    detector, update, predict = self._programs[key]
    arguments = {name: jnp.float32(number) for name, number in numbers.items()}
    return Parts(
      detector, lambda state, batch: update(state, batch, arguments), predict
    )

  @property
  def num_compiled(self) -> int:
    """Training steps compiled so far, over all canvases."""
    return sum(update._cache_size() for _, update, _ in self._programs.values())

  def _key(self, config, devices, steps_per_epoch) -> str:
    values = config.to_dict()
    values.pop('seed')  # of the first parameters and the data's order alone
    for name in self._traced:
      section, field = name.split('.')
      values[section].pop(field)
    return json.dumps(
      [values, devices.mode, [str(d) for d in devices.devices], steps_per_epoch],
      sort_keys=True,
    )


def _lookup(config, name: str) -> float:
  section, field = name.split('.')
  return config[section][field]
