"""The training step of one device, as a pure function of a state and a batch."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from gfl_jax import models
from gfl_jax.training import objective, scalars
from gfl_jax.training import optimizer as optimizers
from gfl_jax.training.accumulation import sum_over_micro_batches

AXIS = 'data'  # name of the mapped axis of devices


@struct.dataclass
class TrainState:
  """All that training needs to continue; the data order follows from the step.

  Attributes:
    step: number of optimizer steps done, int32.
    params: what is trained, and the frozen stages.
    batch_stats: constants of frozen BatchNorm; empty with GroupNorm.
    opt_state: the optimizer's.
    ema: running average of params; empty if `config.ema_decay` is 0.
  """

  step: Any
  params: Any
  batch_stats: Any
  opt_state: Any
  ema: Any

  def variables(self) -> dict[str, Any]:
    """What evaluation uses: the averaged parameters where there are any."""
    variables = {'params': self.ema or self.params}
    return variables | ({'batch_stats': self.batch_stats} if self.batch_stats else {})


def create_state(variables: Mapping[str, Any], config) -> TrainState:
  """State at step 0 of a detector's variables."""
  params = variables['params']
  frozen = models.frozen_mask(params, config.model.backbone.frozen_stages)
  schedule = optax.constant_schedule(0.0)  # not part of the state
  optimizer = optimizers.make_optimizer(config, schedule, frozen)
  # The average is a copy: a step donates its state, whose arrays must be distinct.
  init = lambda params: (
    optimizer.init(params),
    jax.tree.map(jnp.copy, params) if config.ema_decay > 0 else {},
  )
  opt_state, ema = jax.jit(init)(params)
  step, batch_stats = jnp.zeros((), jnp.int32), variables.get('batch_stats', {})
  return TrainState(step, params, batch_stats, opt_state, ema)


def make_train_step(detector, config, *, steps_per_epoch: int) -> Callable:
  """The step `train_step(state, batch) -> (state, metrics)` of one device.

  It runs under the mapped axis `AXIS`. It takes the device's share of the batch
  ([B / devices, ...] of every array) and a state that is the same on all devices. It
  returns the next state, again the same on all, and named scalars of the whole batch.
  It is traced once for each canvas.

  With `config.accumulate` = k the share is run in k micro-batches: the divisors come
  from a first pass without gradients, so the sum of the k gradients is the gradient of
  the one big batch.
  """
  schedule = optimizers.make_schedule(config, steps_per_epoch)

  def forward(function, params, batch_stats, batch, **options):
    variables = {'params': params, 'batch_stats': batch_stats}
    images = models.network_input(config, batch)
    predictions = detector.apply(variables, images, train=True)
    points = models.canvas_points(config, images.shape[1:3])
    return function(predictions, batch, points, config, **options)

  gradient = jax.grad(partial(forward, objective.loss_and_sums), has_aux=True)

  def gradient_and_sums(state, batch):
    arguments = state.params, state.batch_stats
    if config.accumulate == 1:
      return gradient(*arguments, batch, axis_name=AXIS)
    local = partial(forward, objective.local_normalizers, *arguments)
    normalizers = sum_over_micro_batches(local, batch, config.accumulate)
    normalizers = jax.lax.psum(normalizers, AXIS)
    of_part = partial(gradient, *arguments, normalizers=normalizers)
    return sum_over_micro_batches(of_part, batch, config.accumulate)

  def train_step(state, batch):
    grads, sums = jax.lax.psum(gradient_and_sums(state, batch), AXIS)
    frozen = models.frozen_mask(state.params, config.model.backbone.frozen_stages)
    optimizer = optimizers.make_optimizer(config, schedule, frozen)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    metrics = scalars.summary(sums) | {
      'learning_rate': schedule(state.step),
      'grad_norm': optax.tree.norm(grads),
    }
    ema = _average(state.ema, params, state.step, config.ema_decay) if state.ema else {}
    step = state.step + 1
    return TrainState(step, params, state.batch_stats, opt_state, ema), metrics

  return train_step


def _average(ema, params, step, decay):
  """The running average of the parameters after `step` + 1 steps.

  Its decay rises from 0.1 to `decay`, so that it soon forgets the initial parameters.
  """
  done = step.astype(jnp.float32)
  decay = jnp.minimum(decay, (1 + done) / (10 + done))
  return jax.tree.map(lambda old, new: old + (1 - decay) * (new - old), ema, params)
