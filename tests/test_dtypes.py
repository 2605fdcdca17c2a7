"""With 64-bit numbers turned on, a run computes what it does without."""

import re

import jax
import jax.numpy as jnp
import pytest

from gfl_jax.evaluation import evaluator
from gfl_jax.models import build_detector
from gfl_jax.training import parallel, step
from tests import tiny
from tests.training import test_kinds

WIDE = r'\w+:f64\[\d.*'  # an array in the text of a program


@pytest.mark.parametrize(
  'case, optimizer, schedule',
  [
    ('gfl', 'adamw', 'cosine'),
    ('iou', 'sgd', 'step'),
    ('corner', 'adamw', 'step'),
    ('fcos', 'sgd', 'cosine'),
    ('max_iou', 'adamw', 'cosine'),
  ],
)
def test_no_array_has_64_bits(case, optimizer, schedule):
  config, batch = test_kinds.config_of(case), tiny.batch()
  config.optimizer.update(kind=optimizer, clip_norm=1.0)
  config.schedule.kind = schedule
  if case == 'iou':
    config.decode.update(nms='iou_guided', variance_voting=0.01)
  with jax.enable_x64(True):
    detector = build_detector(config)
    image = jnp.zeros((1, 64, 64, 3), jnp.float32)
    variables = jax.eval_shape(detector.init, jax.random.key(0), image)
    state = jax.eval_shape(lambda v: step.create_state(v, config), variables)
    devices = parallel.DataParallel('jit', jax.devices()[:1])
    update = devices.update(step.make_train_step(detector, config, steps_per_epoch=9))
    predict = evaluator.make_predict(detector, config)
    programs = [
      jax.make_jaxpr(update)(state, batch),
      jax.make_jaxpr(predict)(variables, batch),
    ]
    kinds = {x.dtype for x in (*jax.tree.leaves(state), *programs[0].out_avals)}
  assert kinds <= {jnp.dtype('float32'), jnp.dtype('int32')}
  # Numbers alone, as constants and the schedule, may have 64 bits.
  assert not [found for text in map(str, programs) for found in re.findall(WIDE, text)]
