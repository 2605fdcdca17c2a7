"""A run's parts, made from a config and a data set."""

import contextlib
import itertools
import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from gfl_jax import data, models
from gfl_jax.errors import UserError
from gfl_jax.evaluation import evaluator
from gfl_jax.multihost import hosts
from gfl_jax.reports import report
from gfl_jax.training import optimizer as optimizers
from gfl_jax.training import step
from gfl_jax.training.parallel import DataParallel
from gfl_jax.weights.pretrained import load_backbone

_LOG = logging.getLogger(__name__)
MANY_UNREACHABLE = 0.01  # share of sides beyond the bins from which a warning is due


class Experiment:
  """What a config and a data set determine: detector, step, number of steps."""

  def __init__(self, config, dataset):
    """Builds the parts; nothing is compiled or computed yet.

    Raises:
      ValueError: classes or a batch size that do not fit the data or the devices.
    """
    check_num_classes(config, dataset)
    self.config, self.dataset = config, dataset
    self.devices = DataParallel(config.parallel)
    self.devices.check_batch_size(config.batch_size, config.accumulate)
    self.steps_per_epoch = dataset.steps_per_epoch(config.batch_size)
    self.num_steps = optimizers.num_steps_of(config.epochs, self.steps_per_epoch)
    self.eval_every = max(1, round(config.eval_every_epochs * self.steps_per_epoch))
    self.detector, update, predict = compiled_functions(
      config, self.devices, self.steps_per_epoch
    )
    self.update, self.predict = hosts.watched(update), hosts.watched(predict)

  def evaluation_due(self, number: int) -> bool:
    """Whether the state after `number` steps is to be evaluated."""
    return number > 0 and (number % self.eval_every == 0 or number == self.num_steps)

  def check_extension(self, newest: int) -> None:
    """Raises a ValueError if a run is extended whose newest step is not its last."""
    if extensions := self.config.schedule.extensions:
      epochs = extensions[-1][0]
      last = optimizers.num_steps_of(epochs, self.steps_per_epoch)
      if newest < last:
        raise UserError(
          f'--extend: the run is not finished, its newest step is {newest} of {last}:'
          f' train it to its end first, without --extend, --config.epochs={epochs}'
        )

  def initial_state(self, *, pretrained: bool = True) -> step.TrainState:
    """State at step 0 on all devices.

    Args:
      pretrained: False if a stored state will be read into this one, so that the file
        of `model.backbone.pretrained` is not needed.

    Raises:
      ValueError: hosts with different data, or with different files of weights.
    """
    config = self.config
    self.devices.check_equal(
      self.dataset.checksum,
      'read other data than process 0: give all hosts the same images and annotations'
      ' (a relative path may be another file on each host)',
    )
    variables = models.init_variables(self.detector, jax.random.key(config.seed))
    if pretrained and config.model.backbone.pretrained:
      variables = load_backbone(variables, config.model.backbone)
    elif pretrained and config.model.backbone.norm == 'frozen_batch_norm':
      _LOG.warning(
        'Training with frozen BatchNorm from random weights will not get far: give'
        " model.backbone.pretrained=FILE, or norm='group_norm'."
      )
    return self.devices.replicate(step.create_state(variables, config))

  def unreachable_sides(self) -> tuple[float, float]:
    """The share of training box sides that no anchor near the box's center can reach.

    They are farther from the center than the last bin on the coarsest level. The share
    is 0 for boxes without bins.

    Returns:
      The share; and the `box.stop`, in strides, that would reach all sides.
    """
    if self.config.box.kind != 'general':
      return 0.0, 0.0
    coarsest = 8 * 2 ** (self.config.model.neck.num_levels - 1)
    distances = self.dataset.train_box_sizes / 2 / coarsest
    share = float(np.mean(distances > self.config.box.stop))
    return share, float(distances.max())

  def warn_of_unreachable_sides(self) -> None:
    """Warns if many sides are beyond the bins."""
    share, needed = self.unreachable_sides()
    if share > MANY_UNREACHABLE:
      _LOG.warning(
        '%.0f%% of the sides of training boxes are farther from their box center than'
        ' box.stop=%g strides of the coarsest level: they cannot be learned. Give'
        ' box.stop=%d and raise box.num_bins with it, or lower data.short_side.',
        *(100 * share, self.config.box.stop, math.ceil(needed)),
      )

  def description(self, state: step.TrainState) -> str:
    """The run in numbers, for the log."""
    count = lambda tree: sum(x.size for x in jax.tree.leaves(tree))
    counters = self.dataset.counters.items()
    dropped = ', '.join(f'{name.replace("_", " ")} {n}' for name, n in counters if n)
    beyond, _ = self.unreachable_sides()
    sides = f' {beyond:.1%} of box sides beyond the bins;' if beyond else ''
    return (
      f'{self.dataset.num_train} training and {self.dataset.num_eval} evaluation'
      f' images ({dropped or "nothing dropped"}), which cover'
      f' {self.dataset.canvas_covered:.0%} of their canvas;{sides}'
      f' {len(self.dataset.class_names)} classes; {count(state.params):,} parameters;'
      f' {self.num_steps} steps of {self.config.batch_size} images,'
      f' {min(self.config.schedule.warmup_steps, self.num_steps)} of them warm-up, on'
      f' {self.devices.num_devices} x {self.devices.devices[0].device_kind}'
    )

  def train_batches(self, first_step: int) -> Iterator[tuple[int, np.ndarray, Any]]:
    """(steps done after it, image ids, batch on the devices) for each step left."""
    batches = self.dataset.train_batches(
      self.config.batch_size,
      seed=self.config.seed,
      start_step=first_step,
      shard=(jax.process_index(), jax.process_count()),
    )
    numbers = range(first_step + 1, self.num_steps + 1)
    place = lambda number, batch: (
      number,
      batch['image_ids'],
      self.devices.split(batch),
    )
    return data.prefetch(itertools.starmap(place, zip(numbers, batches, strict=False)))

  def evaluate(
    self, state, folder, number: int, notes: Mapping[str, Any] | None = None
  ) -> dict[str, Any]:
    """Metrics of a state on the evaluation set; see `evaluator.evaluate`."""
    batch_size = self.config.batch_size
    shard = jax.process_index(), jax.process_count()
    with contextlib.ExitStack() as stack:

      def batches():
        yield from self.dataset.eval_batches(batch_size, shard=shard)
        # After the last batch process 0 writes the files, which may take long.
        stack.enter_context(hosts.work(takes_long=True))

      return evaluator.evaluate(
        lambda variables, batch: self.predict(variables, self.devices.split(batch)),
        state.variables(),
        batches(),
        self.dataset.ground_truth(),
        config=self.config,
        folder=folder,
        step=number,
        notes=notes,
        share=self.dataset.eval_image_ids(batch_size, shard=shard),
      )


def write_report(
  workdir: str | os.PathLike, evaluation: str | os.PathLike | None = None
) -> None:
  """Writes the page of a run on the first host; a full disk gives a warning.

  Args:
    workdir: as `reports.report.write_report` takes it.
    evaluation: as there.
  """
  if jax.process_index() == 0:
    try:
      _LOG.info('Report: %s', report.write_report(workdir, evaluation))
    except OSError as error:
      _LOG.warning('The report could not be written: %s', error)


def load_dataset(config) -> data.Dataset:
  """Opens the data of a config; the first host may prepare it for the others."""
  with hosts.first_alone():
    return data.load(config.data)


def compiled_functions(
  config, devices: DataParallel, steps_per_epoch: int
) -> tuple[models.Detector, Callable, Callable]:
  """The detector of a config, and its two functions on all devices.

  Returns:
    The Flax module; update: (state, batch) -> (state, metrics); predict:
    (variables, batch) -> `evaluator.Output`. They compile at their first call
    for each canvas.
  """
  detector = models.build_detector(config)
  train_step = step.make_train_step(detector, config, steps_per_epoch=steps_per_epoch)
  predict = evaluator.make_predict(detector, config)
  return detector, devices.update(train_step), devices.predict(predict)


def check_num_classes(config, dataset) -> None:
  """Raises a ValueError unless the head has one output for each class of the data."""
  found = len(dataset.class_names)
  if config.model.num_classes != found:
    names = ', '.join(dataset.class_names[:10]) + (', ...' if found > 10 else '')
    unused = dataset.unused_classes
    without = f'; no training box is of {", ".join(unused[:10])}' if unused else ''
    raise UserError(
      f'model.num_classes={config.model.num_classes}, but the data has {found} classes'
      f' ({names}{without}): give --config.model.num_classes={found}'
    )
