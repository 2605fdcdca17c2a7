"""What the runs of one process share: data sets, and compiled programs."""

import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp

from gfl_jax import data, models
from gfl_jax.errors import UserError
from gfl_jax.evaluation import evaluator
from gfl_jax.multihost import hosts
from gfl_jax.training import run_folder, step
from gfl_jax.training.parallel import DataParallel

# Programs are told apart by the parts of a config that they read.
_READ_BY_PREDICT = ('box', 'data', 'decode', 'model', 'points', 'score')
_NOT_READ_BY_UPDATE = ('seed', 'decode')  # nor the bookkeeping


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

  def __init__(
    self, traced: Sequence[str] = (), datasets: dict[str, data.Dataset] | None = None
  ):
    """Args:
      traced: names in `step.TRACEABLE`, as 'class_loss.beta'.
      datasets: shared with other programs of the process; filled by all of them.

    Raises:
      ValueError: a name that is not there.
    """
    unknown = sorted(set(traced) - set(step.TRACEABLE))
    if unknown:
      raise UserError(f'{unknown} are no numbers of {list(step.TRACEABLE)}')
    self._traced = tuple(traced)
    self._datasets = {} if datasets is None else datasets
    self._updates: dict[str, Callable] = {}
    self._predicts: dict[str, Callable] = {}

  def dataset(self, data_config: Any) -> data.Dataset:
    """`data.load` of a config's `data`, read once; process 0 may prepare it first."""
    key = data_config.to_json_best_effort(sort_keys=True)
    if key not in self._datasets:
      with hosts.first_alone():
        self._datasets[key] = data.load(data_config)
    return self._datasets[key]

  def parts(self, config: Any, devices: DataParallel, steps_per_epoch: int) -> Parts:
    """The programs of a config on some devices."""
    values = config.to_dict()
    taken = step.take_numbers(values, self._traced)
    numbers = {name: jnp.float32(number) for name, number in taken.items()}
    where = [devices.mode, [str(device) for device in devices.devices]]
    read = {name: values[name] for name in _READ_BY_PREDICT}
    not_read = {*_NOT_READ_BY_UPDATE, *run_folder.bookkeeping(values)}
    trained = {name: value for name, value in values.items() if name not in not_read}
    predict_key = json.dumps([read, where], sort_keys=True)
    update_key = json.dumps([trained, steps_per_epoch, where], sort_keys=True)

    detector = models.build_detector(config)
    if update_key not in self._updates:
      train_step = step.make_train_step(
        detector, config, steps_per_epoch=steps_per_epoch
      )
      self._updates[update_key] = devices.update(train_step)
    if predict_key not in self._predicts:
      predict = evaluator.make_predict(detector, config)
      self._predicts[predict_key] = devices.predict(predict)
    update = self._updates[update_key]
    return Parts(
      detector,
      lambda state, batch: update(state, batch, numbers),
      self._predicts[predict_key],
    )

  @property
  def num_compiled(self) -> int:
    """Training steps compiled so far, over all canvases."""
    return sum(update._cache_size() for update in self._updates.values())
