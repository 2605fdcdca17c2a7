"""What runs of one process share, and what they must not."""

import jax
import numpy as np
import pytest

from gfl_jax.models import build_detector, init_variables
from gfl_jax.models.detector import Detector
from gfl_jax.training import parallel, programs, step
from tests import tiny


def one_step(shared, devices, config):
  parts = shared.parts(config, devices, steps_per_epoch=10)
  key = jax.random.key(config.seed)
  state = step.create_state(init_variables(parts.detector, key), config)
  _, scalars = parts.update(devices.replicate(state), devices.split(tiny.batch()))
  return jax.device_get(scalars)


def test_runs_that_differ_in_traced_numbers_alone_share_a_program():
  devices = parallel.DataParallel('jit', jax.devices()[:1])
  shared = programs.Programs(traced=('class_loss.beta', 'optimizer.learning_rate'))
  seen = {}
  for beta in (0.0, 1.0, 2.5):
    config = tiny.config()
    config.class_loss.beta, config.seed = beta, int(beta)
    config.optimizer.learning_rate = 0.01 * (1 + beta)
    seen[beta] = one_step(shared, devices, config)
    assert seen[beta]['learning_rate'] == pytest.approx(1e-3 * 0.01 * (1 + beta))
  assert shared.num_compiled == 1
  # The factor |y - p|^beta is below 1, so a greater beta gives a smaller loss.
  assert seen[0.0]['loss_class'] > seen[1.0]['loss_class'] > seen[2.5]['loss_class'] > 0

  config.edge_loss.weight = 0.5  # not traced
  one_step(shared, devices, config)
  assert shared.num_compiled == 2


def test_the_decoding_is_no_part_of_the_step():
  devices = parallel.DataParallel('jit', jax.devices()[:1])
  shared = programs.Programs()
  first = shared.parts(tiny.config(), devices, steps_per_epoch=10)
  same = shared.parts(tiny.config(), devices, steps_per_epoch=10)
  assert same.predict is first.predict
  config = tiny.config()
  config.decode.nms_iou = 0.5
  one_step(shared, devices, tiny.config())
  one_step(shared, devices, config)
  assert shared.num_compiled == 1
  assert shared.parts(config, devices, steps_per_epoch=10).predict is not first.predict


def test_a_single_run_has_its_numbers_in_the_program():
  devices = parallel.DataParallel('jit', jax.devices()[:1])
  shared = programs.Programs()
  config = tiny.config()
  scalars = one_step(shared, devices, config)
  config.class_loss.beta = 1.0
  assert one_step(shared, devices, config)['loss_class'] > scalars['loss_class']
  assert shared.num_compiled == 2


def test_the_first_variables_are_one_program_for_equal_detectors(monkeypatch):
  traced, true = [], Detector.__call__

  def counted(self, *arguments, **options):
    traced.append(self)
    return true(self, *arguments, **options)

  monkeypatch.setattr(Detector, '__call__', counted)
  config = tiny.config()
  config.model.head.prior_probability = 0.013  # no other test has it
  first, same, other = (
    init_variables(build_detector(config), jax.random.key(seed)) for seed in (0, 0, 1)
  )
  assert len(traced) == 1
  jax.tree.map(np.testing.assert_array_equal, first, same)
  kernel = lambda variables: variables['params']['head']['class_output']['kernel']
  assert np.any(kernel(first) != kernel(other))
  bias = first['params']['head']['class_output']['bias']
  np.testing.assert_allclose(jax.nn.sigmoid(bias), 0.013, rtol=1e-6)

  config.model.head.prior_probability = 0.014
  init_variables(build_detector(config), jax.random.key(0))
  assert len(traced) == 2


def test_a_data_set_is_read_once(monkeypatch):
  load = lambda config: object.__new__(programs.data.Dataset)
  monkeypatch.setattr(programs.data, 'load', load)
  shared, config = programs.Programs(), tiny.config().data
  first = shared.dataset(config)
  assert shared.dataset(tiny.config().data) is first
  config.path = 'b'
  assert shared.dataset(config) is not first


def test_a_number_that_cannot_be_traced_is_named():
  with pytest.raises(ValueError, match='box.num_bins.*class_loss.beta'):
    programs.Programs(traced=('class_loss.beta', 'box.num_bins'))
  np.testing.assert_equal(programs.Programs(step.TRACEABLE).num_compiled, 0)
