import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import gfl_r50_fpn_1x_coco
from gfl_jax.training import optimizer


def recipe(**schedule):
  c = gfl_r50_fpn_1x_coco.get_config()
  c.schedule.update(schedule)
  return c


def test_the_recipe_warms_up_and_drops_after_epochs_8_and_11():
  rate = optimizer.make_schedule(recipe(), steps_per_epoch=1000)
  steps = [0, 250, 500, 7999, 8000, 10999, 11000, 11999]
  factors = [0.001, 0.5005, 1, 1, 0.1, 0.1, 0.01, 0.01]
  got = [float(rate(step)) for step in steps]
  np.testing.assert_allclose(got, 0.01 * np.array(factors), rtol=1e-6)


def test_cosine_falls_from_the_rate_to_its_final_ratio():
  c = recipe(kind='cosine', warmup_steps=0, final_ratio=0.1)
  rate = optimizer.make_schedule(c, steps_per_epoch=10)
  got = [float(rate(step)) for step in (0, 60, 120)]
  np.testing.assert_allclose(got, [0.01, 0.0055, 0.001], rtol=1e-6)


def rates(extensions, steps, epochs, **schedule):
  c = recipe(warmup_steps=0, extensions=extensions, **schedule)
  c.epochs = epochs
  rate = optimizer.make_schedule(c, steps_per_epoch=10)
  return [float(rate(step)) for step in steps]


@pytest.mark.parametrize('kind', ['step', 'cosine', 'constant'])
def test_an_extension_keeps_the_rate_of_the_last_step_or_takes_the_new_schedule(kind):
  steps = [0, 79, 80, 119]
  before = rates((), steps, 12.0, kind=kind)
  kept = rates(((12.0, 'keep_rate'),), [*steps, 120, 239], 24.0, kind=kind)
  assert kept == [*before, before[-1], before[-1]]
  more = [*steps, 120, 200, 239]
  straight = rates((), more, 24.0, kind=kind, decay_epochs=(16, 22))
  new = rates(((12.0, 'new_schedule'),), more, 24.0, kind=kind, decay_epochs=(16, 22))
  assert new == straight
  twice = ((12.0, 'keep_rate'), (24.0, 'keep_rate'))
  assert rates(twice, [300], 36.0, kind=kind) == before[-1:]
  then_new = ((12.0, 'keep_rate'), (24.0, 'new_schedule'))
  assert rates(then_new, more, 36.0, kind=kind) == rates((), more, 36.0, kind=kind)


def test_an_extension_of_another_kind_is_refused():
  with pytest.raises(ValueError, match="extensions='rewind' is not one of"):
    rates(((12.0, 'rewind'),), [0], 24.0)


def test_the_learning_rate_follows_the_batch_size():
  c = recipe()
  c.batch_size = 4
  assert c.optimizer.learning_rate == 0.0025


def minimize(transform, params, gradients):
  state = transform.init(params)
  for gradient in gradients:
    updates, state = transform.update(gradient, state, params)
    params = optax.apply_updates(params, updates)
  return params


def test_sgd_is_torchs():
  # torch.optim.SGD(lr=0.1, momentum=0.9, weight_decay=0.01), written out:
  # v = 0.9 v + (g + 0.01 w); w = w - 0.1 v
  c = recipe()
  c.optimizer.update(weight_decay=0.01)
  weight, velocity = 2.0, 0.0
  for gradient in (1.0, -3.0, 0.5):
    velocity = 0.9 * velocity + (gradient + 0.01 * weight)
    weight -= 0.1 * velocity
  sgd = optimizer.make_optimizer(c, optax.constant_schedule(0.1), {'w': False})
  got = minimize(sgd, {'w': jnp.float32(2)}, [{'w': g} for g in (1.0, -3.0, 0.5)])
  np.testing.assert_allclose(got['w'], weight, rtol=1e-6)


@pytest.mark.parametrize('kind', ['sgd', 'adamw'])
def test_frozen_parameters_neither_move_nor_count_in_the_clipping(kind):
  c = recipe()
  c.optimizer.update(kind=kind, weight_decay=0.5, clip_norm=1.0, momentum=0.0)
  transform = optimizer.make_optimizer(
    c, optax.constant_schedule(1.0), {'frozen': True, 'w': False}
  )
  params = {'frozen': jnp.ones(3), 'w': jnp.zeros(2)}
  gradient = {'frozen': jnp.full(3, 1e6), 'w': jnp.array([0.3, 0.4])}
  got = minimize(transform, params, [gradient])
  np.testing.assert_array_equal(got['frozen'], params['frozen'])
  if kind == 'sgd':  # norm 0.5 < 1: not clipped
    np.testing.assert_allclose(got['w'], [-0.3, -0.4], rtol=1e-6)
  assert len(jax.tree.leaves(transform.init(params))) == (2 if kind == 'sgd' else 4)


@pytest.mark.parametrize(
  'section, value', [('optimizer', 'adam'), ('schedule', 'exponential')]
)
def test_an_unknown_kind_is_named(section, value):
  c = recipe()
  c[section].kind = value
  with pytest.raises(ValueError, match=f"{section}.kind='{value}' is not one of"):
    schedule = optimizer.make_schedule(c, 10)
    optimizer.make_optimizer(c, schedule, {})
