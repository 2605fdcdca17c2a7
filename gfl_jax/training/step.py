"""The training step of one device, as a pure function of a state and a batch."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax
from flax import struct
from jaxtyping import Array

from gfl_jax import models
from gfl_jax.training import objective
from gfl_jax.training import optimizer as optimizers

AXIS = 'data'  # the mapped axis that parallel.py lays the devices along


@struct.dataclass
class TrainState:
  """All that a run needs to go on; the data order follows from the step.

  Attributes:
    step: number of optimiser steps done, int32.
    params: what is trained, and the frozen stages.
    batch_stats: constants of frozen BatchNorm; empty with GroupNorm.
    opt_state: the optimiser's.
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
  optimizer = optimizers.make_optimizer(
    config,
    optax.constant_schedule(0.0),  # no part of the state
    models.frozen_mask(params, config.model.backbone.frozen_stages),
  )
  # Jitted: one small program, not one for each shape of a parameter.
  init = lambda params: (
    optimizer.init(params),
    jax.tree.map(jnp.copy, params) if config.ema_decay > 0 else {},
  )
  opt_state, ema = jax.jit(init)(params)
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    batch_stats=variables.get('batch_stats', {}),
    opt_state=opt_state,
    ema=ema,
  )


# Numbers of a config that a step can take as arguments: one program then serves runs
# that differ in nothing else.
TRACEABLE = (
  'class_loss.weight',
  'class_loss.alpha',
  'class_loss.beta',
  'class_loss.gamma',
  'box_loss.weight',
  'edge_loss.weight',
  'score.weight',
  'optimizer.learning_rate',
)


def make_train_step(detector, config, *, steps_per_epoch: int) -> Callable:
  """The step `(state, batch, numbers) -> (state, scalars)` of one device.

  It runs under the mapped axis `AXIS`. It takes the device's share of the batch
  ([B / devices, ...] of every array) and a state that is the same on all devices; it
  returns the next state, again the same on all, and scalars of the whole batch. It is
  traced once for each canvas.

  `numbers` maps names in `TRACEABLE` to scalars that stand in for the config's; the
  others are constants of the program, which is faster for exponents.

  With `config.accumulate` = k the share is run in k micro-batches: the divisors come
  from a first pass without gradients, so the sum of the k gradients is the gradient of
  the one big batch.
  """

  def predict(params, batch_stats, batch):
    variables = {'params': params, 'batch_stats': batch_stats}
    return detector.apply(variables, models.network_input(config, batch), train=True)

  @partial(jax.grad, has_aux=True)
  def gradient(params, batch_stats, batch, config, normalizers=None):
    return objective.loss_and_sums(
      predict(params, batch_stats, batch),
      batch,
      models.make_anchors(config, batch['images'].shape[1:3]),
      config,
      normalizers=normalizers,
      axis_name=AXIS,
    )

  def accumulated_gradient(state, batch, config):
    micro_batches = jax.tree.map(
      lambda x: x.reshape(config.accumulate, -1, *x.shape[1:]), batch
    )

    def count(batch):
      predictions = predict(state.params, state.batch_stats, batch)
      anchors = models.make_anchors(config, batch['images'].shape[1:3])
      return objective.local_normalizers(predictions, batch, anchors, config)

    normalizers = jax.tree.map(jnp.sum, jax.lax.map(count, micro_batches))
    normalizers = jax.lax.psum(normalizers, AXIS)

    def part(batch):
      return gradient(state.params, state.batch_stats, batch, config, normalizers)

    def add(total, batch):
      return jax.tree.map(jnp.add, total, part(batch)), None

    first = jax.tree.map(lambda x: x[0], micro_batches)
    zeros = jax.tree.map(
      lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(part, first)
    )
    return jax.lax.scan(add, zeros, micro_batches)[0]

  def train_step(state, batch, numbers):
    run_config = _with_numbers(config, numbers)
    if config.accumulate > 1:
      grads, sums = accumulated_gradient(state, batch, run_config)
    else:
      grads, sums = gradient(state.params, state.batch_stats, batch, run_config)
    grads, sums = jax.lax.psum((grads, sums), AXIS)
    schedule = optimizers.make_schedule(run_config, steps_per_epoch)
    frozen = models.frozen_mask(state.params, config.model.backbone.frozen_stages)
    optimizer = optimizers.make_optimizer(run_config, schedule, frozen)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    scalars = objective.summary(sums) | {
      'learning_rate': schedule(state.step),
      'grad_norm': optax.tree.norm(grads),
    }
    ema = state.ema
    if ema:
      # The average forgets its random start at first: (1 + t) / (10 + t) < decay.
      done = state.step.astype(jnp.float32)
      decay = jnp.minimum(config.ema_decay, (1 + done) / (10 + done))
      ema = jax.tree.map(lambda old, new: old + (1 - decay) * (new - old), ema, params)
    next_state = state.replace(
      step=state.step + 1, params=params, opt_state=opt_state, ema=ema
    )
    return next_state, scalars

  return train_step


def _with_numbers(config, numbers: Mapping[str, Array]):
  """The config with some of its numbers replaced."""
  values = config.to_dict()
  for name, number in numbers.items():
    section, field = name.split('.')
    values[section][field] = number
  return ml_collections.ConfigDict(values, type_safe=False)


def take_numbers(values: dict[str, Any], names: Iterable[str]) -> dict[str, Any]:
  """Takes the numbers of these names in `TRACEABLE` out of a config's nested dict."""
  sections = {name: name.split('.') for name in names}
  return {
    name: values[section].pop(field) for name, (section, field) in sections.items()
  }
