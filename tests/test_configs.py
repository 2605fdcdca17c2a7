"""Every config builds, shows all its values, and runs a step."""

import importlib.util
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from gfl_jax.models import build_detector, init_variables
from gfl_jax.training import config_checks, parallel, step
from tests import tiny

ROOT = pathlib.Path(__file__).parents[1]
FILES = sorted(f for f in (ROOT / 'configs').glob('*.py') if f.stem != '__init__')
CASES = [(f, ()) for f in FILES] + [(ROOT / 'configs' / 'bccd.py', ('pretrained',))]


def load(file):
  spec = importlib.util.spec_from_file_location(file.stem, file)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


@pytest.mark.parametrize(
  ('file', 'arguments'),
  CASES,
  ids=lambda x: x.stem if isinstance(x, pathlib.Path) else '',
)
def test_config_says_how_it_is_run_and_runs_a_step(file, arguments):
  module = load(file)
  name = ':'.join([str(file.relative_to(ROOT)), *arguments])
  assert f'python scripts/train.py --config={name} ' in module.__doc__
  config = module.get_config(*arguments)
  config_checks.check_config(config)
  backbone = config.model.backbone
  backbone.update(widths=tuple(8 for _ in backbone.widths), norm_groups=4)
  # Fewer layers to compile; EfficientNet has one size, so its gradient is left out.
  if backbone.kind == 'resnet':
    backbone.depth = min(backbone.depth, 18)
  else:
    backbone.frozen_stages = 4
  config.model.neck.channels = 8
  config.model.head.update(channels=8, norm_groups=4)

  detector = build_detector(config)
  variables = init_variables(detector, jax.random.key(0))
  devices = parallel.DataParallel('jit', jax.devices()[:1])
  update = devices.update(step.make_train_step(detector, config, steps_per_epoch=10))
  state = step.create_state(variables, config)
  batch = tiny.batch(2, num_classes=config.model.num_classes)
  state, scalars = update(devices.replicate(state), devices.split(batch))
  assert state.step == 1
  assert all(np.isfinite(value) for value in scalars.values()), scalars


def test_a_start_that_bccd_does_not_have_is_an_error():
  with pytest.raises(ValueError, match="start='imagenet' must be 'scratch' or"):
    load(ROOT / 'configs' / 'bccd.py').get_config('imagenet')


def train(*arguments):
  return subprocess.run(
    [sys.executable, 'scripts/train.py', *arguments],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
  )


def test_a_misspelt_field_is_an_error_that_suggests_the_right_one(tmp_path):
  done = train(
    '--config=configs/demo_shapes.py', f'--workdir={tmp_path}', '--config.batchsize=8'
  )
  assert done.returncode != 0
  assert "no field 'batchsize': did you mean 'batch_size'?" in done.stderr
  assert 'Traceback' not in done.stderr
