"""The numbers of a run: progress bar, metrics.jsonl, and the stop at a bad loss."""

import json
import logging
import math
import os
import pathlib
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import tqdm
from jax.experimental import multihost_utils

from gfl_jax import files
from gfl_jax.errors import NonFiniteLossError, UserError
from gfl_jax.reports.report import MANY_CLAMPED
from gfl_jax.training.experiment import Experiment

_LOG = logging.getLogger(__name__)


class MetricsLog:
  """`metrics.jsonl`, one line of numbers for each entry, and TensorBoard events."""

  def __init__(self, workdir: str | os.PathLike, *, start_step: int, tensorboard: bool):
    """Opens the log; lines beyond `start_step`, of a killed run, are removed."""
    self._active = jax.process_index() == 0
    self._events = None
    if not self._active:
      return
    if tensorboard:
      try:
        import tensorboardX
      except ImportError as error:
        raise UserError(
          "tensorboard=True needs an extra: pip install -e '.[tensorboard]'"
        ) from error
      self._events = tensorboardX.SummaryWriter(str(pathlib.Path(workdir) / 'events'))
    file = pathlib.Path(workdir) / 'metrics.jsonl'
    if file.exists():
      lines = files.read_json_lines(file)
      files.write_json_lines(file, (x for x in lines if x['step'] <= start_step))
    self._file = files.AppendLog(file)

  def write(self, kind: str, step: int, numbers: Mapping[str, Any]) -> None:
    """Adds one line; the events get its scalars only."""
    if not self._active:
      return
    line = json.dumps({'kind': kind, 'step': step, **numbers}) + '\n'
    if error := self._file.write(line):
      _LOG.warning(
        'metrics.jsonl: %s; its lines are kept in memory until there is space.', error
      )
    if self._events:
      for name, value in numbers.items():
        if isinstance(value, float | int):
          self._events.add_scalar(f'{kind}/{name}', value, step)
      self._events.flush()

  def close(self) -> None:
    """Closes the files."""
    if self._active and (error := self._file.close()):
      _LOG.warning('metrics.jsonl: %s; its last lines are lost.', error)
    if self._events:
      self._events.close()


class Monitor:
  """Reads the scalars of each step one step late, so that the device never waits."""

  def __init__(self, run: Experiment, workdir: str | os.PathLike, start: int):
    """Opens the log and the bar of a run that has done `start` steps."""
    config = run.config
    self._config, self._run = config, run
    self._log = MetricsLog(workdir, start_step=start, tensorboard=config.tensorboard)
    self._bar = tqdm.tqdm(
      total=run.num_steps,
      initial=start,
      desc='train',
      unit='step',
      disable=jax.process_index() != 0,
    )
    self._bar.set_postfix_str('compiling the step')
    self._pending: tuple[int, Mapping[str, jax.Array], np.ndarray] | None = None
    self._warned: set[str] = set()
    self._since_log: list[Mapping[str, float]] = []
    self._clock: tuple[int, float] | None = None  # a step, and when it was done

  def __enter__(self) -> 'Monitor':
    return self

  def __exit__(self, *error) -> None:
    if error == (None, None, None):
      self.check_last_step()
    self._bar.close()
    self._log.close()

  def add(
    self, step: int, scalars: Mapping[str, jax.Array], image_ids: np.ndarray
  ) -> None:
    """Takes the numbers of the step just started; reads those of the step before.

    Raises:
      NonFiniteLossError: a loss or gradient that is not finite; names the step, the
        loss terms and the images of the batch.
    """
    self._read_pending()
    self._pending = (step, scalars, image_ids)

  def check_last_step(self) -> None:
    """Reads the newest step and writes its line, before it is saved.

    A run resumed from that checkpoint then writes the lines of an undisturbed run.

    Raises:
      NonFiniteLossError: as `add`.
    """
    last_step = self._pending[0] if self._pending else 0
    self._read_pending()
    if self._since_log:
      self._write(last_step)

  def _read_pending(self) -> None:
    if self._pending is None:
      return
    step, scalars, image_ids = self._pending
    self._pending = None
    numbers = {name: float(value) for name, value in jax.device_get(scalars).items()}
    terms = {k: v for k, v in numbers.items() if k == 'grad_norm' or 'loss' in k}
    if not all(map(math.isfinite, terms.values())):
      # The terms are of the whole batch, so all processes get here.
      all_ids = multihost_utils.process_allgather(image_ids, tiled=True)
      raise NonFiniteLossError(
        f'step {step}: '
        + ', '.join(f'{name}={value}' for name, value in terms.items())
        + f'; image ids of the batch: {all_ids.tolist()}. Checkpoints'
        ' before this step are kept. A lower learning rate, a longer warm-up or'
        ' optimizer.clip_norm may help.'
      )
    # The clock starts after the first step, which compiles, and after evaluations.
    if self._clock is None:
      self._clock = (step, time.perf_counter())
      self._bar.set_postfix_str('')
      self._bar.unpause()  # so that the time left is estimated from steps only
    self._since_log.append(numbers)
    self._bar.update(1)
    if step % self._config.log_every_steps == 0:
      self._write(step)

  def evaluated(self, step: int, metrics: Mapping[str, Any]) -> None:
    """Logs an evaluation; its time does not count in the training speed."""
    self._log.write('eval', step, metrics)
    show = lambda value: 'none' if value is None else f'{value:.3f}'
    if not self._bar.disable:
      self._bar.write(
        f'step {step}: AP {show(metrics["AP"])}, AP50 {show(metrics["AP50"])}'
      )
    self._clock = None

  def _write(self, step: int) -> None:
    rows = self._since_log
    means = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
    means['learning_rate'] = rows[-1]['learning_rate']
    now = (step, time.perf_counter())
    before_step, before_time = self._clock or now
    if step > before_step:
      images = (step - before_step) * self._config.batch_size
      means['images_per_second'] = images / (now[1] - before_time)
    means['epoch'] = step / self._run.steps_per_epoch
    self._log.write('train', step, means)
    text = f'loss {means["loss"]:.3f}'
    if speed := means.get('images_per_second'):
      text += f', {speed:.{0 if speed >= 10 else 2}f} images/s'
    self._bar.set_postfix_str(text)
    self._warn(step, means)
    self._since_log, self._clock = [], now

  def _warn(self, step: int, means: Mapping[str, float]) -> None:
    """Warns, once a run, of numbers that otherwise only metrics.jsonl shows."""
    texts = {}
    if means['clamped_targets'] > MANY_CLAMPED:
      texts['clamped_targets'] = (
        f'{means["clamped_targets"]:.0%} of the sides of positives are beyond their'
        ' bins, so they are learned too short: raise box.stop (and box.num_bins with'
        ' it), or lower data.short_side'
      )
    if means['dropped_positives']:
      texts['dropped_positives'] = (
        f'{means["dropped_positives"]:.1f} positives a batch are ignored, beyond the'
        ' capacity: raise box_loss.max_positives_per_image'
      )
    for name in texts.keys() - self._warned:
      if not self._bar.disable:
        self._bar.write(f'step {step}: {texts[name]}')
    self._warned |= texts.keys()
