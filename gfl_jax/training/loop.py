"""Trains a detector: the one loop, from a config to a run's folder."""

import logging
import os
import pathlib
from typing import Any

import jax

from gfl_jax.checkpointing.manager import Checkpoints
from gfl_jax.multihost import hosts
from gfl_jax.multihost.preemption import Preempted, Preemption
from gfl_jax.reports import report
from gfl_jax.training import run_folder
from gfl_jax.training.config_checks import check_config
from gfl_jax.training.experiment import Experiment
from gfl_jax.training.monitor import Monitor
from gfl_jax.training.parallel import DataParallel
from gfl_jax.training.programs import Programs
from gfl_jax.training.step import TrainState

_LOG = logging.getLogger(__name__)


def train(
  config, workdir: str | os.PathLike, programs: Programs | None = None
) -> dict[str, Any]:
  """Trains, evaluates and reports; started again, it goes on where it was.

  Args:
    config: an experiment's config.
    workdir: the run's folder, made if missing.
    programs: what this run may share with others of the process.

  Returns:
    The metrics of the last evaluation.

  Raises:
    ValueError: a config that cannot run, another run's folder, or one in which another
      process trains.
    NonFiniteLossError: the loss became nan or infinite.
    Preempted: a Ctrl-C or SIGTERM came; the step it came in is saved. If that step was
      to be evaluated, the next start does it.
  """
  check_config(config)
  devices = DataParallel(config.parallel)
  devices.check_batch_size(config.batch_size, config.accumulate)
  with run_folder.hold(workdir):
    return _train(config, workdir, devices, programs or Programs())


def _train(
  config, workdir: str | os.PathLike, devices: DataParallel, programs: Programs
) -> dict[str, Any]:
  run_folder.open_run(workdir, config)
  dataset = programs.dataset(config.data)
  run = Experiment(config, dataset, devices, programs)
  with (
    run_folder.open_checkpoints(workdir) as checkpoints,
    hosts.report_errors(),
  ):
    if checkpoints.steps:
      run_folder.check_classes(workdir, run.dataset.class_names)
      run_folder.check_data(workdir, dataset.checksum)
    state = run.initial_state(pretrained=not checkpoints.steps)
    _LOG.info('%s', run.description(state))
    run.warn_of_the_bins()
    restored = checkpoints.restore_newest(state)
    state, first_step = restored or (state, 0)
    # Not before it is known that this start is right.
    run_folder.write_config(workdir, config)
    run_folder.write_data(workdir, dataset.checksum)
    run_folder.write_classes(workdir, run.dataset.class_names, run.dataset.category_ids)
    if restored:
      _LOG.info('Going on from step %d of %d.', first_step, run.num_steps)
    with Preemption() as stop:
      state, metrics = _go_on(run, state, first_step, workdir, checkpoints, stop)
    checkpoints.wait()
  if metrics is None:
    _LOG.info('All %d steps are done: evaluating the last again.', run.num_steps)
    metrics = run.evaluate(state, pathlib.Path(workdir) / 'eval', first_step)
  if jax.process_index() == 0:
    try:
      _LOG.info('Report: %s', report.write_report(workdir))
    except OSError as error:  # a full disk; the run itself is done
      _LOG.warning('The report is not written: %s', error)
  if stop.number:  # a study must not begin its next run
    raise Preempted('Preempted after the last step: this run is done.', stop.number)
  return metrics


def _go_on(
  run: Experiment,
  state: TrainState,
  step: int,
  workdir: str | os.PathLike,
  checkpoints: Checkpoints,
  stop: Preemption,
) -> tuple[TrainState, dict[str, Any] | None]:
  """From a state after `step` steps to the last, evaluations included.

  A step is saved before it is evaluated, for a preemption in an evaluation, which may
  take long, to lose no step. The evaluation is then done by the next start, so that the
  log is that of a run never stopped.

  Returns:
    The last state, and its metrics; None for these if there was nothing left to do.
  """
  config, metrics = run.config, None
  with Monitor(config, workdir, run, step) as monitor:

    def evaluate_now(state: TrainState, step: int) -> dict[str, Any]:
      metrics = run.evaluate(state, pathlib.Path(workdir) / 'eval', step)
      monitor.evaluated(step, metrics)
      checkpoints.evaluated(step, metrics['AP'])
      return metrics

    if run.evaluation_due(step) and not checkpoints.is_evaluated(step):
      metrics = evaluate_now(state, step)
    for number, image_ids, batch in run.train_batches(step):
      state, scalars = run.update(state, batch)
      monitor.add(number, scalars, image_ids)
      checkpoints.poll()
      due, stopped_by = run.evaluation_due(number), stop.reached()
      if due or stopped_by or number % config.checkpoint_every_steps == 0:
        monitor.settle()  # a state whose loss was not finite is never saved
        with hosts.work(takes_long=True):
          checkpoints.save(number, state)
      if stopped_by:
        checkpoints.wait()
        raise Preempted(
          f'Preempted at step {number}: the same command goes on from there.',
          stopped_by,
        )
      if due:
        metrics = evaluate_now(state, number)
  return state, metrics
