"""One step: the same numbers on 1, 2 and 8 devices, in one piece or accumulated."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gfl_jax.evaluation import evaluator
from gfl_jax.models import build_detector
from gfl_jax.training import parallel, step
from tests import tiny

SCALARS = ('loss', 'loss_class', 'loss_box', 'loss_edge', 'positive_iou', 'grad_norm')


@functools.cache
def variables():
  detector = build_detector(tiny.config())
  init = jax.jit(detector.init)(jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
  # At the start all scores are alike; as after some training, they are not.
  params = init['params']
  params['head']['class_output']['kernel'] *= 30
  return jax.device_get(init)


def run_steps(
  num_devices,
  mode='jit',
  *,
  num_steps=3,
  batches=None,
  optimizer_config=None,
  **changes,
):
  """The state and scalars after some steps, and the compiled update."""
  config = tiny.config()
  config.update(changes)
  config.optimizer = optimizer_config or config.optimizer
  detector = build_detector(config)
  devices = parallel.DataParallel(mode, jax.devices()[:num_devices])
  update = devices.update(step.make_train_step(detector, config, steps_per_epoch=10))
  state = devices.replicate(step.create_state(variables(), config))
  for number in range(num_steps):
    batch = batches[number] if batches else tiny.batch(seed=number)
    state, scalars = update(state, devices.split(batch))
  return jax.device_get(state), jax.device_get(scalars), update


def sgd_config():
  """Adam divides by the gradient's size and would magnify rounding."""
  c = tiny.config().optimizer
  c.update(kind='sgd', learning_rate=0.02)
  return c


@functools.cache
def on_one_device():
  return run_steps(1, optimizer_config=sgd_config(), ema_decay=0.9)


@pytest.mark.parametrize(
  'num_devices, mode, accumulate',
  [
    (2, 'jit', 1),
    (8, 'jit', 1),
    (2, 'pmap', 1),
    (8, 'pmap', 1),
    (1, 'jit', 4),
    (2, 'jit', 2),
  ],
)
def test_a_split_batch_is_the_whole_batch(num_devices, mode, accumulate):
  expected_state, expected, _ = on_one_device()
  state, scalars, _ = run_steps(
    num_devices,
    mode,
    optimizer_config=sgd_config(),
    ema_decay=0.9,
    accumulate=accumulate,
  )
  assert state.step == 3
  for name in SCALARS:
    np.testing.assert_allclose(scalars[name], expected[name], rtol=1e-5, err_msg=name)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
    (state.params, state.ema),
    (expected_state.params, expected_state.ema),
  )


@pytest.mark.parametrize('num_devices, mode', [(8, 'jit'), (8, 'pmap')])
def test_detections_are_those_of_one_device(num_devices, mode):
  config, batch = tiny.config(), tiny.batch()
  config.decode.score_threshold = 0.01
  predict = evaluator.make_predict(build_detector(config), config)

  def detections(mode, num_devices):
    devices = parallel.DataParallel(mode, jax.devices()[:num_devices])
    placed = devices.replicate(variables())
    output = devices.predict(predict)(placed, devices.split(batch))
    return jax.device_get(output[0])

  found, expected = detections(mode, num_devices), detections('jit', 1)
  assert expected.valid.any()
  np.testing.assert_array_equal(found.classes, expected.classes)
  np.testing.assert_allclose(found.boxes, expected.boxes, rtol=1e-4, atol=1e-3)
  np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-4)


def test_run_to_run_nothing_differs():
  again = run_steps(1, optimizer_config=sgd_config(), ema_decay=0.9)
  jax.tree.map(np.testing.assert_array_equal, again[:2], on_one_device()[:2])


def test_the_average_of_parameters_follows_its_formula():
  batches = [tiny.batch(seed=s) for s in range(2)]
  params = [variables()['params']]
  for number in (1, 2):
    state, _, _ = run_steps(
      1, num_steps=number, batches=batches, optimizer_config=sgd_config(), ema_decay=0.9
    )
    params.append(state.params)
  # decay = min(0.9, (1 + t) / (10 + t)) at t = 0, 1
  expected = jax.tree.map(
    lambda a, b, c: (0.1 * a + 0.9 * b) * (2 / 11) + c * (9 / 11), *params
  )
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7),
    state.ema,
    expected,
  )
  averaged = state.variables()['params']
  jax.tree.map(np.testing.assert_array_equal, averaged, state.ema)


def test_a_step_compiles_once_per_canvas():
  batches = [tiny.batch(), tiny.batch(seed=1), tiny.batch(2, seed=2)]
  wide = tiny.batch(seed=3)
  wide['images'] = np.pad(wide['images'], ((0, 0), (0, 0), (0, 32), (0, 0)))
  *_, update = run_steps(1, num_steps=3, batches=[batches[0], batches[1], batches[0]])
  assert update._cache_size() == 1
  *_, update = run_steps(1, num_steps=4, batches=[batches[0], wide, batches[1], wide])
  assert update._cache_size() == 2


def test_ten_steps_learn_one_batch():
  batch = tiny.batch()
  settings = tiny.config()
  settings.schedule.update(warmup_steps=0, kind='constant')
  changes = dict(schedule=settings.schedule)
  _, first, _ = run_steps(1, num_steps=1, batches=[batch], **changes)
  _, last, _ = run_steps(1, num_steps=10, batches=[batch] * 10, **changes)
  assert last['loss'] < 0.8 * first['loss']


def test_bfloat16_trunk_gives_nearly_the_same_loss_and_float32_parameters():
  model = tiny.config().model
  model.dtype = 'bfloat16'
  state, scalars, _ = run_steps(1, num_steps=1, model=model)
  _, expected, _ = run_steps(1, num_steps=1)
  assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {np.dtype('float32')}
  np.testing.assert_allclose(scalars['loss'], expected['loss'], rtol=0.02)


def equations(jaxpr):
  for equation in getattr(jaxpr, 'jaxpr', jaxpr).eqns:
    yield equation
    for value in jax.tree.leaves(
      list(equation.params.values()), is_leaf=lambda x: hasattr(x, 'eqns')
    ):
      if hasattr(value, 'eqns') or hasattr(value, 'jaxpr'):
        yield from equations(value)


def test_a_bfloat16_trunk_multiplies_in_bfloat16_both_ways_and_nowhere_else():
  config = tiny.config()
  config.model.dtype = 'bfloat16'
  detector = build_detector(config)
  devices = parallel.DataParallel('jit', jax.devices()[:1])
  update = devices.update(step.make_train_step(detector, config, steps_per_epoch=10))
  state = jax.eval_shape(lambda v: step.create_state(v, config), variables())
  traced = list(equations(update.trace(state, tiny.batch()).jaxpr))
  types = lambda name: {
    variable.aval.dtype
    for equation in traced
    if equation.primitive.name == name
    for variable in equation.invars
  }
  assert types('conv_general_dilated') == {jnp.dtype('bfloat16')}
  for name in ('log1p', 'log', 'dot_general', 'psum_invariant', 'psum'):
    assert types(name) <= {jnp.dtype('float32')}, name
  assert types('log1p')  # of the class loss
  every = {v.aval.dtype for e in traced for v in e.outvars if hasattr(v.aval, 'dtype')}
  assert jnp.dtype('float64') not in every


@pytest.mark.parametrize('batch_size, accumulate', [(12, 1), (8, 2), (0, 1)])
def test_a_batch_that_cannot_be_split_is_refused(batch_size, accumulate):
  devices = parallel.DataParallel('jit')
  with pytest.raises(ValueError, match=f'batch_size={batch_size} cannot be split'):
    devices.check_batch_size(batch_size, accumulate)


def test_an_unknown_way_to_run_is_named():
  with pytest.raises(ValueError, match="parallel='pjit' is not one of"):
    parallel.DataParallel('pjit')
