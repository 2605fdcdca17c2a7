"""Real processes over loopback do what one process does, and end when one fails."""

import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from gfl_jax.checkpointing.manager import Checkpoints
from gfl_jax.errors import EXIT_RETRYABLE
from gfl_jax.multihost import hosts
from gfl_jax.training import experiment, loop, parallel, run_folder
from scripts.faults import process_group
from scripts.faults.process_group import ProcessGroup
from tests import tiny
from tests.multihost import host_worker

WORKER = str(pathlib.Path(host_worker.__file__))
ENVIRONMENT = {
  'GFL_JAX_LAUNCHED': '1',  # with this process's flags for the compiler
  'PYTHONPATH': str(pathlib.Path(__file__).parents[2]),
}
# Far above what is needed: the machine may have other work.
LIMIT_SECONDS = 900


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """Where the data lie."""
  folder = tmp_path_factory.mktemp('hosts')
  tiny.save_data(folder / 'tiny.npz', num_train=24, num_eval=10)
  for size in host_worker.EVAL_SIZES:
    tiny.save_data(folder / f'eval_{size}.npz', num_train=8, num_eval=size)
  return folder


@pytest.fixture(scope='module')
def alone(folder):
  """The folder of one process of 8 devices, which did what the groups do."""
  mine = folder / 'alone'
  host_worker.cut_and_resumed(folder, mine, keep=mine / 'cut')
  host_worker.evaluated(folder, mine)
  return mine


def run_group(folder, count, scenarios):
  """The folder of a group of processes with 8 devices in all, and what each printed."""
  mine = folder / f'group_{count}'
  mine.mkdir(exist_ok=True)
  command = [WORKER, str(folder), str(mine), *scenarios]
  with ProcessGroup(
    command, count, mine / 'logs', devices=8 // count, environment=ENVIRONMENT
  ) as group:
    assert group.wait(LIMIT_SECONDS) == [0] * count, group.report()
    return mine, [group.text(number) for number in range(count)]


def final_state(folder, run):
  c = host_worker.config(folder)
  form = experiment.Experiment(c, experiment.load_dataset(c))
  with Checkpoints(run / 'checkpoints', read_only=True) as checkpoints:
    state, step = checkpoints.restore_newest(form.initial_state())
  assert step == host_worker.STEPS
  return jax.device_get(state)


def assert_close(found, wanted):
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5), found, wanted
  )


def assert_evaluated_alike(mine, alone):
  for size in host_worker.EVAL_SIZES:
    (metrics, results), (wanted, expected) = (
      [
        json.loads((run / f'eval_{size}' / f'{name}.json').read_text())
        for name in ('metrics', 'detections')
      ]
      for run in (mine, alone)
    )
    assert metrics['num_images'] == size
    for name, value in wanted.items():
      if name not in ('seconds', 'diagnostics'):
        assert metrics[name] == pytest.approx(value, abs=1e-6), (size, name)
    ids = [sorted(r['image_id'] for r in part) for part in (results, expected)]
    assert ids[0] == ids[1] and len(set(ids[0])) == size


def test_two_processes_do_what_one_does(folder, alone, tmp_path):
  mine = folder / 'group_2'
  shutil.copytree(alone / 'cut', mine / 'from_one')
  mine, printed = run_group(
    folder,
    2,
    [
      'straight',
      'cut_and_resumed',
      'resumed_elsewhere',
      'evaluated',
      'read_by_one_alone',
      'other_data',
      'not_finite',
      'asked_to_stop',
    ],
  )
  wanted = final_state(folder, alone / 'resumed')
  by_jit = final_state(folder, mine / 'jit')
  assert_close(by_jit, wanted)
  assert_close(final_state(folder, mine / 'pmap'), wanted)
  assert_close(final_state(folder, mine / 'from_one'), wanted)
  resumed = final_state(folder, mine / 'resumed')
  jax.tree.map(np.testing.assert_array_equal, resumed, by_jit)
  assert_evaluated_alike(mine, alone)

  # No process continues from a checkpoint that one process cannot read.
  steps = [(mine / f'half_read_{number}').read_text() for number in range(2)]
  assert steps == ['4', '4']
  assert 'another host cannot read it' in printed[0]

  # The same relative path led to another file on the second.
  for number in range(2):
    assert 'process(es) [1] read other data than process 0' in (
      (mine / f'other_data_{number}').read_text()
    )

  # One shard was poisoned; all stop at that step and name the images of both.
  errors = [(mine / f'error_{number}').read_text() for number in range(2)]
  assert errors[0] == errors[1] and errors[0].startswith('step 3: ')
  assert '=nan' in errors[0]
  ids = json.loads(errors[0].partition('batch: ')[2].partition(']')[0] + ']')
  assert len(set(ids)) == 8

  # One was asked to stop; all stop after the same step, and one process continues.
  (text, code), other = (
    json.loads((mine / f'stopped_{number}').read_text()) for number in range(2)
  )
  assert [text, code] == other and code == 128 + signal.SIGTERM
  with Checkpoints(mine / 'stopped' / 'checkpoints', read_only=True) as checkpoints:
    step = checkpoints.steps[-1]
  assert f' step {step}:' in text
  shutil.copytree(mine / 'stopped', tmp_path / 'run')
  loop.train(host_worker.config(folder), tmp_path / 'run')
  assert_close(final_state(folder, tmp_path / 'run'), wanted)

  # The first alone says what runs and how far it is.
  assert 'Continuing from step 4 of 6' in printed[0] and 'evaluate:' in printed[0]
  for words in ('Continuing', 'train:', 'evaluate:', 'Report', 'AP50'):
    assert words not in printed[1]


def test_four_processes_do_what_one_does(folder, alone):
  mine, _ = run_group(folder, 4, ['straight_jit', 'evaluated'])
  assert_close(
    final_state(folder, mine / 'jit'), final_state(folder, alone / 'resumed')
  )
  assert_evaluated_alike(mine, alone)


def running_group(folder, count, scenario='run_until_ended', **arguments):
  folder.mkdir(exist_ok=True)
  command = [WORKER, str(folder), str(folder), scenario]
  return ProcessGroup(
    command, count, folder / 'logs', environment=ENVIRONMENT, **arguments
  )


def assert_error(group, number, *facts):
  """One line of a process is an error with these facts."""
  lines = group.text(number).splitlines()
  lines = [line for line in lines if line.startswith(f'process {number}: error: ')]
  assert any(all(x in line for x in facts) for line in lines), group.report()


def test_a_late_process_is_waited_for_and_a_killed_one_named(tmp_path):
  with running_group(tmp_path, 3, later=[1]) as group:
    group.wait_for_text(0, 'waiting for 3 processes', LIMIT_SECONDS)
    time.sleep(3)
    group.start(1)
    group.wait_for_text(0, 'under way', LIMIT_SECONDS)
    start = time.monotonic()
    group.signal(1, signal.SIGKILL)
    statuses = [EXIT_RETRYABLE, -signal.SIGKILL, EXIT_RETRYABLE]
    assert group.wait(LIMIT_SECONDS) == statuses, group.report()
    for number in (0, 2):
      assert group.seconds[number] - start < 30
      assert_error(group, number, 'no heartbeat', 'from process 1')
      assert hosts.START_AGAIN in group.text(number)


def test_without_the_coordinator_a_line_says_what_to_do(tmp_path):
  with running_group(tmp_path, 2) as group:
    group.wait_for_text(1, 'under way', LIMIT_SECONDS)
    start = time.monotonic()
    group.signal(0, signal.SIGKILL)
    # jax aborts process 1.
    assert group.wait(LIMIT_SECONDS) == [-signal.SIGKILL, -signal.SIGABRT]
    assert group.seconds[1] - start < 30
    group.wait_for_text(1, hosts.START_AGAIN, 30)  # by the exit reporter
    assert_error(group, 1, 'process 0')


def test_a_signal_before_the_first_step_stops_all_after_it(tmp_path):
  with running_group(tmp_path, 2, 'asked_to_stop_early') as group:
    assert group.wait(LIMIT_SECONDS) == [0, 0], group.report()
    for number in range(2):
      assert (tmp_path / f'stopped_{number}').read_text() == '1', group.report()


def test_a_line_names_the_address_where_not_all_joined():
  at = f'127.0.0.1:{process_group.free_port()}'
  code = (
    'from gfl_jax.multihost import hosts\n'
    'hosts.WAIT_FOR_ALL_SECONDS = 3\n'
    f'hosts.connect("{at}", 2, 0)'
  )
  done = subprocess.run(
    [sys.executable, '-c', code], env=os.environ | ENVIRONMENT, stderr=subprocess.PIPE
  )
  said = done.stderr.decode(errors='replace').splitlines()[-1]
  assert said.startswith('process 0: error: ') and f'at {at} within 3 s' in said


def test_a_port_that_is_taken_is_named():
  with socket.create_server(('', 0)) as taken:
    port = taken.getsockname()[1]
    with pytest.raises(ValueError, match=f':{port}.*cannot listen'):
      hosts.connect(f'127.0.0.1:{port}', 2, 0)


def test_a_stuck_process_is_named(tmp_path):
  (tmp_path / 'stuck_1').write_text('')
  with running_group(tmp_path, 2) as group:
    group.wait_for_text(1, 'stuck now', LIMIT_SECONDS)
    start = time.monotonic()
    # By this status keep_training.sh starts the process again.
    assert group.wait(LIMIT_SECONDS, [0])[0] == EXIT_RETRYABLE
    assert group.seconds[0] - start < 30
    assert_error(group, 0, '20 s from process 1')


def test_all_show_the_error_of_one_even_while_tensorflow_starts(tmp_path):
  with running_group(tmp_path, 2, 'refused_while_starting') as group:
    assert group.wait(LIMIT_SECONDS) == [1, 1], group.report()
    error = 'error: not this config. They differ in:'
    assert f'process 1: {error}\n  seed: 1, 2\n(GFL' in group.text(1), group.report()
    assert_error(group, 0, f'process 1 has ended: {error} seed: 1, 2.')
    assert not any(hosts.START_AGAIN in group.text(number) for number in range(2))


def test_a_process_that_hangs_before_the_first_step_is_named(tmp_path):
  with running_group(tmp_path, 2, 'hanging_before_the_first_step') as group:
    group.wait(LIMIT_SECONDS, [1])
    assert 'process 1: Waiting for process 0, at most' in group.text(1), group.report()
    assert_error(group, 1, 'from process 0')
    assert hosts.START_AGAIN in group.text(1)


def test_hosts_with_different_configs_or_folders_are_refused(tmp_path, monkeypatch):
  c = tiny.config()
  run_folder.open_run(tmp_path / 'run', c)
  first = json.loads(c.to_json())
  monkeypatch.setattr(jax, 'process_index', lambda: 3)
  monkeypatch.setattr(hosts, 'from_first', lambda read: first)
  run_folder.open_run(tmp_path / 'run', c)
  with pytest.raises(ValueError, match='process 3 .*--workdir'):
    run_folder.open_run(tmp_path / 'elsewhere', c)
  c.class_loss.beta = 1.0
  with pytest.raises(ValueError, match='process 3') as error:
    run_folder.open_run(tmp_path / 'run', c)
  assert 'class_loss.beta: stored 2.0, given 1.0' in str(error.value)


@pytest.mark.parametrize(
  'arguments, named',
  [
    (('here:1', None, None), 'give all three'),
    ((None, 2, 0), 'give all three'),
    (('here', 2, 0), 'must be HOST:PORT'),
    (('9876', 2, 0), 'must be HOST:PORT'),
    (('here:99999', 2, 0), 'a port from 1 to 65535'),
    (('here:1', 0, 0), 'less than num_processes=0'),
    (('here:1', 2, 2), 'process_id=2 must be'),
    (('no.such.host.invalid:1', 2, 1), 'cannot be resolved'),
    ((None, 1, 1), 'give all three'),
  ],
)
def test_flags_that_do_not_fit_together_are_refused(arguments, named):
  with pytest.raises(ValueError, match=named):
    hosts.connect(*arguments)


def test_on_a_tpu_a_line_says_that_all_hosts_are_waited_for(monkeypatch, caplog):
  def initialize(*arguments, **settings):
    raise RuntimeError('no metadata')

  monkeypatch.setattr(hosts.private_apis, 'runs_on_cloud_tpu', lambda: True)
  monkeypatch.setattr(jax.distributed, 'initialize', initialize)
  with caplog.at_level('INFO'), pytest.raises(ValueError, match='no metadata'):
    hosts.connect(None, None, None)
  assert caplog.messages == [
    'this process: waiting for all processes at the first host, at most 10 minutes.'
  ]


def test_slurm_neither_joins_processes_nor_hides_gpus(monkeypatch):
  # As of one task on a node: jax would give it the first GPU alone.
  for name, value in {
    'SLURM_JOB_ID': '7',
    'SLURM_NTASKS': '1',
    'SLURM_PROCID': '0',
    'SLURM_LOCALID': '0',
    'SLURM_STEP_NODELIST': 'here',
    'SLURM_STEP_NUM_TASKS': '1',
  }.items():
    monkeypatch.setenv(name, value)
  hosts.connect(None, None, None)
  assert hosts.watchdog is None
  assert jax.config.values['jax_cuda_visible_devices'] == 'all'


def test_a_bucket_is_no_folder_of_a_run():
  with pytest.raises(ValueError, match='workdir=gs://x/run'):
    loop.train(tiny.config(), 'gs://x/run')


def test_devices_of_a_host_lie_side_by_side():
  shuffled = [jax.devices()[i] for i in (5, 0, 3, 7)]
  mesh = parallel.DataParallel('pmap', shuffled).mesh
  assert [device.id for device in mesh.devices] == [0, 3, 5, 7]


def test_a_process_that_is_alone_stays_alone():
  hosts.connect(None, 1, None)
  assert hosts.watchdog is None
  hosts.wait_for_all()
  with hosts.first_alone(), hosts.work(), hosts.report_errors():
    assert hosts.finish() == 0
