"""Trains a detector: the one loop, from a config to a run's folder."""

import logging
import os
import pathlib
from typing import Any

from gfl_jax.data import Dataset
from gfl_jax.multihost import hosts
from gfl_jax.multihost.preemption import Preempted, Preemption
from gfl_jax.training import run_folder
from gfl_jax.training.config_checks import check_config
from gfl_jax.training.experiment import Experiment, load_dataset, write_report
from gfl_jax.training.metrics_log import Monitor
from gfl_jax.training.step import TrainState

_LOG = logging.getLogger(__name__)


def train(
  config, workdir: str | os.PathLike, dataset: Dataset | None = None
) -> dict[str, Any]:
  """Trains, evaluates and reports. Started again, it continues from where it stopped.

  Args:
    config: an experiment's config.
    workdir: the run's folder, made if missing.
    dataset: of `config.data`, if it is open already.

  Returns:
    The metrics of the last evaluation.

  Raises:
    ValueError: a config that cannot run, another run's folder, or one in which another
      process trains.
    NonFiniteLossError: the loss became nan or infinite.
    Preempted: the run was interrupted, after saving the step. If that step was to be
      evaluated, the next start does it.
  """
  check_config(config)
  with run_folder.hold(workdir):
    run_folder.open_run(workdir, config)
    run = Experiment(config, dataset or load_dataset(config))
    with run_folder.open_checkpoints(workdir) as checkpoints, hosts.report_errors():
      state, step = _first_state(run, workdir, checkpoints)
      with Preemption() as preemption:
        state, metrics = _train(run, state, step, workdir, checkpoints, preemption)
      checkpoints.wait()
    if metrics is None:
      _LOG.info('All %d steps are done: evaluating the last again.', run.num_steps)
      metrics = run.evaluate(state, pathlib.Path(workdir) / 'eval', step)
    write_report(workdir)
  if preemption.signal:  # a study must not start its next run
    raise Preempted('Stopped after the last step: this run is done.', preemption.signal)
  return metrics


def _first_state(run: Experiment, workdir, checkpoints) -> tuple[TrainState, int]:
  """The newest stored state, or a new one, and the number of steps it has done."""
  resumes = bool(checkpoints.steps)
  if resumes:
    run_folder.check_dataset(workdir, run.dataset)
  run.check_extension(max(checkpoints.steps, default=0))
  state = run.initial_state(pretrained=not resumes)
  _LOG.info('%s', run.description(state))
  run.warn_of_unreachable_sides()
  state, step = checkpoints.restore_newest(state) or (state, 0)
  # Files of an existing run change only now, when data and checkpoint are known to fit.
  run_folder.write_start(workdir, run.config, run.dataset)
  if step:
    _LOG.info('Continuing from step %d of %d.', step, run.num_steps)
  return state, step


def _train(
  run: Experiment, state: TrainState, start: int, workdir, checkpoints, preemption
) -> tuple[TrainState, dict[str, Any] | None]:
  """Trains from step `start` to the last step, evaluations included.

  A step is saved before it is evaluated, so that a preemption during an evaluation
  loses no step. The next start then does the evaluation.

  Returns:
    The last state, and its metrics; None for these if there was nothing left to do.
  """
  metrics = None
  with Monitor(run, workdir, start) as monitor:

    def evaluate(state: TrainState, step: int) -> dict[str, Any]:
      metrics = run.evaluate(state, pathlib.Path(workdir) / 'eval', step)
      monitor.evaluated(step, metrics)
      checkpoints.aps[step] = metrics['AP']
      return metrics

    if run.evaluation_due(start) and start not in checkpoints.aps:
      metrics = evaluate(state, start)
    for step, image_ids, batch in run.train_batches(start):
      state, scalars = run.update(state, batch)
      monitor.add(step, scalars, image_ids)
      checkpoints.warn_if_failed()
      stop, due = preemption.requested(), run.evaluation_due(step)
      if stop or due or step % run.config.checkpoint_every_steps == 0:
        monitor.check_last_step()  # a state whose loss is not finite is never saved
        checkpoints.save(step, state)
      if stop:
        checkpoints.wait()
        raise Preempted(f'Stopped at step {step}: the same command continues it.', stop)
      if due:
        metrics = evaluate(state, step)
  return state, metrics
