"""Programs compiled for real TPUs; needs the extra [tpu], and no TPU."""

import json
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from gfl_jax.training.parallel import DataParallel
from gfl_jax.training.step import AXIS

pytest.importorskip('libtpu')

ROOT = pathlib.Path(__file__).parents[1]
TINY = [
  '--config=configs/demo_shapes.py',
  '--config.model.backbone.widths=(8, 8, 8, 8)',
  '--config.model.backbone.norm_groups=4',
  '--config.model.neck.channels=8',
  '--config.model.head.channels=8',
  '--config.model.head.num_convs=1',
  '--config.model.dtype=bfloat16',
  '--images_per_chip=2',
]


def compile_for_tpu(*flags):
  return subprocess.run(
    [sys.executable, 'scripts/compile_for_tpu.py', *TINY, *flags],
    cwd=ROOT,
    capture_output=True,
    text=True,
  )


def test_both_programs_compile_for_a_slice_of_256_chips(tmp_path):
  out = tmp_path / 'lines.jsonl'
  done = compile_for_tpu('--topology=v5e:16x16', f'--out={out}')
  assert done.returncode == 0, done.stderr
  train, evaluate = (json.loads(line) for line in out.read_text().splitlines())
  assert (train['program'], evaluate['program']) == ('train', 'evaluate')
  for line in (train, evaluate):
    assert line['chips'] == 256 and line['memory']['fits']
    assert line['groups']['convolution']['ms'] > 0 < line['mfu'] < 1
  # The state that goes in is used up; gradients of all parameters are summed.
  assert train['memory']['aliased'] > 0.9 * train['memory']['outputs']
  assert train['collectives']['bytes'] > 4 * 10_000 > evaluate['collectives']['bytes']
  assert 'predicted step' in done.stdout


def test_a_program_that_does_not_fit_ends_with_a_line_that_says_so():
  done = compile_for_tpu(
    '--topology=v5e:2x2',
    '--programs=train',
    '--config.data.canvas=(2048, 2048)',
    '--images_per_chip=1024',
  )
  assert done.returncode == 1
  assert 'error: does not fit on v5e:2x2: train: needs' in done.stderr
  assert 'Traceback' not in done.stderr


def test_a_slice_that_libtpu_does_not_know_is_an_error():
  done = compile_for_tpu('--topology=v5e:3x3')
  assert done.returncode == 1
  assert '--topology=v5e:3x3 is no slice: give v5e:2x2, v5e:2x4' in done.stderr


def test_the_devices_of_several_slices_are_one_mesh():
  from scripts.tpu import chips

  chips.describe('v5e:4x4')  # tells libtpu that there is no TPU
  from jax.experimental import topologies

  described = topologies.get_topology_desc('v5e:4x4', platform='tpu', num_slices=2)
  devices = DataParallel('jit', described.devices)
  assert devices.num_devices == 32
  hosts = [device.process_index for device in devices.devices]
  assert hosts == sorted(hosts) and len({d.slice_index for d in devices.devices}) == 2

  def step(state, batch):
    return jax.lax.psum(state + batch.sum(), AXIS), {}

  shaped = lambda shape, spec: jax.ShapeDtypeStruct(
    shape, jnp.float32, sharding=jax.NamedSharding(devices.mesh, spec)
  )
  whole = jax.P()
  update = devices.update(step)
  compiled = update.lower(shaped((8,), whole), shaped((32, 4), jax.P(AXIS))).compile()
  # The sum crosses the slices: one group of all devices, or one a slice and a link.
  assert 'all-reduce' in compiled.as_text()
