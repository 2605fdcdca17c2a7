"""Optimizers and learning-rate schedules, from optax."""

import collections

import jax
import jax.numpy as jnp
import optax

from gfl_jax.config import choose


def make_schedule(config, steps_per_epoch: int) -> optax.Schedule:
  """Learning rate as a function of the step: linear warm-up, then steps or a cosine.

  During warm-up the rate is multiplied by a factor that grows linearly from
  `schedule.warmup_ratio` at step 0 to 1 at `schedule.warmup_steps`. After it, 'step'
  multiplies by `decay_factor` at the end of each epoch in `decay_epochs`; 'cosine'
  falls to `final_ratio` of the rate at the end of the last step; 'constant' keeps the
  rate. A run extended by 'keep_rate' keeps the last rate that it had before.

  Args:
    config: an experiment's config (`optimizer.learning_rate`, `schedule`, `epochs`).
    steps_per_epoch: optimizer steps in one epoch.

  Raises:
    ValueError: an unknown `schedule.kind` or way of an extension.
  """
  schedule, rate = config.schedule, config.optimizer.learning_rate
  epochs = _scheduled_epochs(config)
  num_steps = num_steps_of(epochs, steps_per_epoch)
  decay = choose(_DECAYS, schedule.kind, 'schedule.kind')(
    schedule, steps_per_epoch, num_steps
  )

  def learning_rate(step):
    if epochs < config.epochs:
      step = jnp.minimum(step, num_steps - 1)
    done = jnp.minimum(step / max(schedule.warmup_steps, 1), 1.0)
    warmup = schedule.warmup_ratio + (1 - schedule.warmup_ratio) * done
    return rate * decay(step) * jnp.where(schedule.warmup_steps > 0, warmup, 1.0)

  return learning_rate


def _scheduled_epochs(config) -> float:
  """Number of epochs after which the rate is kept; all if there is no extension."""
  epochs = config.epochs
  for before, how in reversed(config.schedule.extensions):
    if not choose(_KEEPS_RATE, how, 'schedule.extensions'):
      break
    epochs = before
  return epochs


def _steps(schedule, steps_per_epoch, num_steps):
  steps = (round(epoch * steps_per_epoch) for epoch in schedule.decay_epochs)
  counts = collections.Counter(steps)  # two epochs may end on the same step
  boundaries = {step: schedule.decay_factor**n for step, n in counts.items()}
  return optax.piecewise_constant_schedule(1.0, boundaries)


def _cosine(schedule, steps_per_epoch, num_steps):
  return optax.cosine_decay_schedule(1.0, num_steps, alpha=schedule.final_ratio)


_DECAYS = {
  'step': _steps,
  'cosine': _cosine,
  'constant': lambda *_: optax.constant_schedule(1.0),
}
_KEEPS_RATE = {'keep_rate': True, 'new_schedule': False}  # by the way of an extension


def num_steps_of(epochs: float, steps_per_epoch: int) -> int:
  """Optimizer steps of so many epochs, at least one; `epochs` need not be whole."""
  return max(1, round(epochs * steps_per_epoch))


def make_optimizer(
  config, schedule: optax.Schedule, frozen
) -> optax.GradientTransformation:
  """SGD with momentum as torch computes it, or AdamW.

  SGD adds the weight decay to the gradient before the momentum and multiplies by the
  learning rate last (torch.optim.SGD without dampening). Frozen parameters get no
  decay, no state and no update, and do not count in the clipping norm.

  Args:
    config: an experiment's config, whose `optimizer` is read.
    schedule: learning rate by step.
    frozen: tree of bools like the parameters; True is never updated.

  Raises:
    ValueError: an unknown `optimizer.kind`.
  """
  settings = config.optimizer
  parts = choose(_OPTIMIZERS, settings.kind, 'optimizer.kind')(settings, schedule)
  if settings.clip_norm > 0:
    parts.insert(0, optax.clip_by_global_norm(settings.clip_norm))
  labels = jax.tree.map(lambda is_frozen: 'frozen' if is_frozen else 'trained', frozen)
  return optax.multi_transform(
    {'trained': optax.chain(*parts), 'frozen': optax.set_to_zero()}, labels
  )


def _sgd(settings, schedule) -> list[optax.GradientTransformation]:
  decay = optax.add_decayed_weights(settings.weight_decay)
  return [decay, optax.sgd(schedule, momentum=settings.momentum)]


def _adamw(settings, schedule) -> list[optax.GradientTransformation]:
  return [optax.adamw(schedule, weight_decay=settings.weight_decay)]


_OPTIMIZERS = {'sgd': _sgd, 'adamw': _adamw}
