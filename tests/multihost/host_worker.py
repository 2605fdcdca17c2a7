"""What each process of a group does in test_hosts.py; results lie in its folder.

host_worker.py FOLDER SCENARIO...
"""

import errno
import itertools
import json
import os
import pathlib
import shutil
import signal
import time

import jax
import numpy as np
import pytest

from gfl_jax import launch
from gfl_jax.checkpointing import checksums
from gfl_jax.checkpointing.manager import Checkpoints
from gfl_jax.data import terminal
from gfl_jax.errors import UserError
from gfl_jax.multihost import failure_detector, hosts
from gfl_jax.multihost.preemption import Preempted, Preemption
from gfl_jax.training import experiment, loop, run_folder
from tests import tiny

EVAL_SIZES = (1, 7, 8, 9, 17)
STEPS = 6
LIMIT_SECONDS = 900  # a process ends even if its test was killed


def config(folder, parallel='jit', data='tiny.npz'):
  """As in test_loop.py: 3 steps of 8 images make an epoch."""
  c = tiny.config()
  c.data.path = str(folder / data)
  c.parallel = parallel
  c.epochs = STEPS / 3
  c.log_every_steps = 3
  c.checkpoint_every_steps = 2
  c.eval_every_epochs = 2.0
  return c


def cut_after(steps):
  """Ends the next run, on all processes, before it reads the batch after `steps`."""
  true = experiment.Experiment.train_batches

  def cut(self, first_step):
    for number, *rest in true(self, first_step):
      if number > steps:
        experiment.Experiment.train_batches = true
        raise KeyboardInterrupt
      yield number, *rest

  experiment.Experiment.train_batches = cut


def poison_one_shard(step):
  """One device of the last process has parameters that are no numbers, at a step."""
  true = experiment.Experiment.initial_state

  def spoil(array):
    shards = [shard.data for shard in array.addressable_shards]
    if jax.process_index() == jax.process_count() - 1:
      shards[-1] = shards[-1] * np.nan
    return jax.make_array_from_single_device_arrays(array.shape, array.sharding, shards)

  def initial_state(self, **arguments):
    update = self.update

    def spoiled(state, batch):
      if int(state.step) == step - 1:
        state = state.replace(params=jax.tree.map(spoil, state.params))
      return update(state, batch)

    self.update = spoiled
    return true(self, **arguments)

  experiment.Experiment.initial_state = initial_state
  return lambda: setattr(experiment.Experiment, 'initial_state', true)


def straight(folder, mine):
  """Runs of STEPS steps, by jit and by pmap."""
  for parallel in ('jit', 'pmap'):
    loop.train(config(folder, parallel), mine / parallel)


def straight_jit(folder, mine):
  loop.train(config(folder), mine / 'jit')


def cut_and_resumed(folder, mine, keep=None):
  """The same by jit, cut off after step 5 and resumed from step 4."""
  cut_after(5)
  try:
    loop.train(config(folder), mine / 'resumed')
  except KeyboardInterrupt:
    if keep:
      shutil.copytree(mine / 'resumed', keep)
    loop.train(config(folder), mine / 'resumed')


def resumed_elsewhere(folder, mine):
  """Continues the runs that the test has copied from other groups."""
  for run in sorted(mine.glob('from_*')):
    loop.train(config(folder), run)


def evaluated(folder, mine):
  """Evaluates the same parameters on sets of several sizes."""
  for size in EVAL_SIZES:
    c = config(folder, data=f'eval_{size}.npz')
    c.decode.score_threshold = 0.0
    run = experiment.Experiment(c, experiment.load_dataset(c))
    run.evaluate(run.initial_state(), mine / f'eval_{size}', 0)


def asked_to_stop(folder, mine):
  """The last process gets SIGTERM, in slow steps: jax needs a second to pass it on."""
  true = experiment.Experiment.train_batches

  def slow(self, first_step):
    for number, *rest in true(self, first_step):
      if number == 1 and jax.process_index() == jax.process_count() - 1:
        os.kill(os.getpid(), signal.SIGTERM)
      time.sleep(1.0)
      yield number, *rest

  experiment.Experiment.train_batches = slow
  try:
    loop.train(config(folder), mine / 'stopped')
  except Preempted as stop:
    text = json.dumps([str(stop), stop.exit_code])
    (mine / f'stopped_{jax.process_index()}').write_text(text)


def not_finite(folder, mine):
  """What stops each process."""
  heal = poison_one_shard(3)
  try:
    loop.train(config(folder), mine / 'poisoned')
  except FloatingPointError as error:
    (mine / f'error_{jax.process_index()}').write_text(str(error))
  heal()


def read_by_one_alone(folder, mine):
  """The last process cannot read the newest checkpoint of what `straight` left."""
  if jax.process_index() == 0:
    shutil.copytree(mine / 'jit', mine / 'half_read')
  hosts.wait_for_all()
  true = checksums.read

  def read(step_folder):
    if step_folder.name == str(STEPS) and jax.process_index() > 0:
      raise OSError(errno.EIO, 'Input/output error')
    return true(step_folder)

  checksums.read = read
  c = config(folder)
  run = experiment.Experiment(c, experiment.load_dataset(c))
  with Checkpoints(mine / 'half_read' / 'checkpoints') as checkpoints:
    _, step = checkpoints.restore_newest(run.initial_state())
  (mine / f'half_read_{jax.process_index()}').write_text(str(step))
  checksums.read = true


def other_data(folder, mine):
  """A relative path, and another file there in the last process's folder."""
  data, before = 'tiny.npz', pathlib.Path.cwd()
  if jax.process_index() > 0:
    data = f'eval_{EVAL_SIZES[-1]}.npz'
  folder_of_mine = mine / f'host_{jax.process_index()}'
  folder_of_mine.mkdir()
  shutil.copy(folder / data, folder_of_mine / 'data.npz')
  os.chdir(folder_of_mine)
  c = config(pathlib.Path(), data='data.npz')
  run_folder.open_run(mine / 'other_data', c)  # the configs are equal
  run = experiment.Experiment(c, experiment.load_dataset(c))
  try:
    run.initial_state()
  except ValueError as error:
    (mine / f'other_data_{jax.process_index()}').write_text(str(error))
  os.chdir(before)


def run_until_ended(folder, mine):
  """Steps that need all processes, without a model; one may get stuck."""
  total = jax.jit(lambda x: x.sum())
  devices = experiment.DataParallel('jit')
  end = time.monotonic() + LIMIT_SECONDS
  for step in itertools.takewhile(lambda _: time.monotonic() < end, itertools.count()):
    if step == 20 and (mine / f'stuck_{jax.process_index()}').exists():
      print('stuck now')
      time.sleep(LIMIT_SECONDS)
    with hosts.work():
      batch = devices.split({'x': np.ones(jax.local_device_count(), np.float32)})
      assert total(batch['x']) == jax.device_count()
    if step == 10:
      print('under way')
    time.sleep(0.1)


def asked_to_stop_early(folder, mine):
  """The last process gets SIGTERM before any step; writes how many each did then."""
  if jax.process_index() == jax.process_count() - 1:
    os.kill(os.getpid(), signal.SIGTERM)
  time.sleep(3)  # opening data, restoring
  steps, stopped = 0, None
  with Preemption() as stop:
    while not stopped and steps < 100:
      time.sleep(0.05)
      steps += 1
      stopped = stop.requested()
  (mine / f'stopped_{jax.process_index()}').write_text(str(steps))


def refused_while_starting(folder, mine):
  """One that will not run, while the first starts TensorFlow."""
  if jax.process_index() > 0:
    raise UserError('not this config. They differ in:\n  seed: 1, 2')
  with terminal.hold_back_stderr():
    time.sleep(LIMIT_SECONDS)


def hanging_before_the_first_step(folder, mine):
  """The first cannot read from its disk; in shorter times than those of a run."""
  hosts._NAME_LATE_AFTER_SECONDS = 1.0
  hosts.LONG_STUCK_SECONDS = failure_detector.LONG_STUCK_SECONDS = 3.0
  hosts.from_first(lambda: time.sleep(LIMIT_SECONDS))


def main(argv):
  folder, mine = map(pathlib.Path, argv[1:3])
  tiny.share_compiled_functions(pytest.MonkeyPatch())
  loop.write_report = lambda workdir: None  # takes longer than this training
  times = {}
  for name in argv[3:]:
    start = time.monotonic()
    globals()[name](folder, mine)
    times[name] = round(time.monotonic() - start, 1)
  print(json.dumps(times))


if __name__ == '__main__':
  launch.run(main, several_processes=True)
