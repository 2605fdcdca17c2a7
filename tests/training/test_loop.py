"""Whole runs: a run that was stopped equals one that was not; faults are named."""

import importlib.metadata
import json
import os
import shutil
import signal
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gfl_jax
from gfl_jax import files
from gfl_jax.checkpointing import checksums
from gfl_jax.checkpointing.manager import Checkpoints
from gfl_jax.errors import UserError
from gfl_jax.export import manifest
from gfl_jax.multihost.preemption import Preempted
from gfl_jax.training import (
  environment,
  evaluate,
  experiment,
  extension,
  loop,
  metrics_log,
  run_folder,
  step,
)
from gfl_jax.training.evaluate import evaluate_run
from tests import tiny

NUM_IMAGES = 24  # 3 steps of 8 make an epoch


@pytest.fixture(scope='module')
def data_file(tmp_path_factory):
  path = tmp_path_factory.mktemp('data') / 'tiny.npz'
  tiny.save_data(path, num_train=NUM_IMAGES, num_eval=10)
  return str(path)


@pytest.fixture(scope='module', autouse=True)
def _compile_once():
  with pytest.MonkeyPatch.context() as patch:
    tiny.share_compiled_functions(patch)
    yield


def config(data_file, *, epochs=2.0):
  c = tiny.config()
  c.data.path = data_file
  c.epochs = epochs
  c.log_every_steps = 3
  c.checkpoint_every_steps = 2
  c.eval_every_epochs = 2.0
  return c


def experiment_of(c, dataset=None):
  return experiment.Experiment(c, dataset or experiment.load_dataset(c))


def final_state(c, workdir):
  run = experiment_of(c)
  with Checkpoints(workdir / 'checkpoints') as checkpoints:
    return jax.device_get(checkpoints.restore_newest(run.initial_state()))


def stop_after(monkeypatch, steps):
  """Makes the next run end, as if killed, before it reads the batch after `steps`."""
  true = experiment.Experiment.train_batches

  def cut(self, first_step):
    for number, *rest in true(self, first_step):
      if number > steps:
        raise KeyboardInterrupt
      yield number, *rest

  monkeypatch.setattr(experiment.Experiment, 'train_batches', cut)


@pytest.fixture(scope='module')
def straight(data_file, tmp_path_factory):
  """A run of 6 steps that nothing disturbed: (folder, metrics)."""
  folder = tmp_path_factory.mktemp('straight')
  return folder, loop.train(config(data_file), folder)


def test_a_run_leaves_what_a_user_looks_for(straight, data_file):
  folder, metrics = straight
  assert json.loads((folder / 'config.json').read_text())['epochs'] == 2.0
  assert json.loads((folder / 'env.json').read_text())['versions']['jax']
  assert json.loads((folder / 'eval' / 'metrics.json').read_text())['step'] == 6
  assert (folder / 'report.html').stat().st_size > 10_000
  lines = [json.loads(x) for x in (folder / 'metrics.jsonl').read_text().splitlines()]
  assert [(x['kind'], x['step']) for x in lines] == [
    ('train', 2),
    ('train', 3),
    ('train', 4),
    ('train', 6),
    ('eval', 6),
  ]
  assert {'loss', 'loss_class', 'loss_box', 'loss_edge', 'epoch'} <= lines[0].keys()
  assert lines[-1]['AP'] == metrics['AP'] and metrics['num_images'] == 10


@pytest.mark.parametrize('steps', [3, 5])
def test_a_stopped_run_ends_as_the_straight_one_bit_for_bit(
  straight, data_file, tmp_path, monkeypatch, steps
):
  c = config(data_file)
  with monkeypatch.context() as patch:
    stop_after(patch, steps)
    with pytest.raises(KeyboardInterrupt):
      loop.train(c, tmp_path)
  metrics = loop.train(c, tmp_path)
  jax.tree.map(
    np.testing.assert_array_equal, final_state(c, tmp_path), final_state(c, straight[0])
  )
  assert metrics['AP'] == straight[1]['AP']
  read = lambda folder: [
    (line['kind'], line['step'], line.get('AP'), line.get('loss'))
    for line in map(json.loads, (folder / 'metrics.jsonl').read_text().splitlines())
  ]
  assert read(tmp_path) == read(straight[0])


def raise_signal_at(monkeypatch, step, number):
  """The next run gets a signal when it reads the batch of a step."""
  true = experiment.Experiment.train_batches

  def signalled(self, first_step):
    for current, *rest in true(self, first_step):
      if current == step:
        os.kill(os.getpid(), number)
      yield current, *rest

  monkeypatch.setattr(experiment.Experiment, 'train_batches', signalled)


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_asked_to_stop_saves_the_step_and_goes_on_from_it(
  straight, data_file, tmp_path, monkeypatch, number
):
  c = config(data_file)
  with monkeypatch.context() as patch:
    raise_signal_at(patch, 3, number)
    with pytest.raises(Preempted, match='Stopped at step 3: the same command') as error:
      loop.train(c, tmp_path)
  assert error.value.exit_code == 128 + number
  with Checkpoints(tmp_path / 'checkpoints') as checkpoints:
    assert checkpoints.steps[-1] == 3
  loop.train(c, tmp_path)
  last = [checksums.read(run / 'checkpoints' / '6') for run in (tmp_path, straight[0])]
  assert last[0] == last[1]


def evaluated_twice(data_file):
  """Of the 6 steps 3 and 6 are evaluated."""
  c = config(data_file)
  c.eval_every_epochs = 1.0
  return c


@pytest.fixture(scope='module')
def undisturbed(data_file, tmp_path_factory):
  folder = tmp_path_factory.mktemp('undisturbed')
  loop.train(evaluated_twice(data_file), folder)
  return folder


@pytest.fixture
def _no_report(monkeypatch):
  """A report takes longer than the training here."""
  monkeypatch.setattr(loop, 'write_report', lambda workdir: None)


def outcome(folder):
  """What does not differ between runs of 6 steps that are the same."""
  lines = files.read_json_lines(folder / 'metrics.jsonl')
  times = {'seconds', 'images_per_second'}
  log = [{k: v for k, v in line.items() if k not in times} for line in lines]
  detections = (folder / 'eval' / 'detections.json').read_text()
  arrays = checksums.read(folder / 'checkpoints' / '6')
  return [json.dumps(line) for line in log], arrays, detections


def evaluated_steps(folder):
  return sorted(run_folder.evaluated_aps(folder))


@pytest.mark.usefixtures('_no_report')
@pytest.mark.parametrize('step, before', [(3, []), (6, [3])])
def test_a_run_stopped_where_an_evaluation_is_due_leaves_it_to_the_next_start(
  undisturbed, data_file, tmp_path, monkeypatch, step, before
):
  c = evaluated_twice(data_file)
  with monkeypatch.context() as patch:
    raise_signal_at(patch, step, signal.SIGTERM)
    with pytest.raises(Preempted, match=f'Stopped at step {step}: the same') as error:
      loop.train(c, tmp_path)
  assert error.value.exit_code == 128 + signal.SIGTERM
  assert evaluated_steps(tmp_path) == before
  with Checkpoints(tmp_path / 'checkpoints') as checkpoints:
    assert checkpoints.steps[-1] == step
  assert loop.train(c, tmp_path)['step'] == 6
  assert outcome(tmp_path) == outcome(undisturbed)


@pytest.mark.usefixtures('_no_report')
@pytest.mark.parametrize('error', [KeyboardInterrupt, OSError])
def test_an_evaluation_that_is_cut_off_loses_no_step(
  undisturbed, data_file, tmp_path, monkeypatch, error
):
  c = evaluated_twice(data_file)

  def evaluate(self, state, workdir, number):
    raise error('in the evaluation')

  with monkeypatch.context() as patch:
    patch.setattr(experiment.Experiment, 'evaluate', evaluate)
    for _ in range(2):
      with pytest.raises(error):
        loop.train(c, tmp_path)
      with Checkpoints(tmp_path / 'checkpoints') as checkpoints:
        assert checkpoints.steps == [2, 3]
  loop.train(c, tmp_path)
  assert outcome(tmp_path) == outcome(undisturbed)


def with_aps(source, folder, aps):
  """A copy of a run whose log says that its steps have these APs."""
  shutil.copytree(source, folder)
  lines = files.read_json_lines(folder / 'metrics.jsonl')
  for line in lines:
    if line['kind'] == 'eval':
      line['AP'] = aps[line['step']]
  files.write_json_lines(folder / 'metrics.jsonl', lines)
  return folder


@pytest.mark.usefixtures('_no_report')
def test_a_run_set_back_by_damage_evaluates_again(undisturbed, data_file, tmp_path):
  true = run_folder.evaluated_aps(undisturbed)
  run = with_aps(undisturbed, tmp_path / 'run', true | {6: 0.9})
  (run / 'checkpoints' / '6' / 'checksums' / 'metadata').write_text('{}')
  loop.train(evaluated_twice(data_file), run)
  assert outcome(run) == outcome(undisturbed)
  assert (run / 'damaged' / '6.0').exists()


def test_the_best_step_is_that_of_the_log(undisturbed, tmp_path):
  run = with_aps(undisturbed, tmp_path / 'run', {3: 0.5, 6: 0.25})
  with (run / 'metrics.jsonl').open('a') as log:
    log.write('{"kind": "eval", "st')  # of a run that is writing now
  assert evaluate_run(run, 'best')['step'] == 3


def test_a_stop_in_the_last_evaluation_comes_after_the_report(
  data_file, tmp_path, monkeypatch
):
  true = experiment.Experiment.evaluate

  def interrupted(self, *arguments):
    os.kill(os.getpid(), signal.SIGINT)
    return true(self, *arguments)

  monkeypatch.setattr(experiment.Experiment, 'evaluate', interrupted)
  with pytest.raises(Preempted, match='after the last step: this run is done') as error:
    loop.train(config(data_file, epochs=1 / 3), tmp_path)
  assert error.value.exit_code == 128 + signal.SIGINT
  assert json.loads((tmp_path / 'eval' / 'metrics.json').read_text())['step'] == 1
  assert (tmp_path / 'report.html').exists()
  with Checkpoints(tmp_path / 'checkpoints') as checkpoints:
    assert checkpoints.steps == [1]


def test_a_finished_run_is_evaluated_again_not_trained(straight, data_file, capsys):
  folder, metrics = straight
  before = (folder / 'metrics.jsonl').read_text()
  again = loop.train(config(data_file), folder)
  assert again['AP'] == metrics['AP']
  assert (folder / 'metrics.jsonl').read_text() == before
  being_saved = folder / 'checkpoints' / '99.orbax-checkpoint-tmp'
  being_saved.mkdir()
  assert evaluate_run(folder, 'best')['AP'] == metrics['AP']
  being_saved.rmdir()  # of a run that trains meanwhile: it was left alone


def test_a_stored_step_is_asked_for_by_name(straight):
  with pytest.raises(ValueError, match=r'step=5: .*stored: \[4, 6\]'):
    evaluate_run(straight[0], '5')


def test_evaluating_what_is_no_run_says_so(tmp_path):
  with pytest.raises(FileNotFoundError, match='is not the folder of a run'):
    evaluate_run(tmp_path, 'newest')


def test_a_folder_of_another_config_is_refused(straight, data_file):
  c = config(data_file)
  c.class_loss.beta = 1.0
  c.seed = 3
  with pytest.raises(ValueError, match='holds a run of another config') as error:
    loop.train(c, straight[0])
  assert 'class_loss.beta: stored 2.0, given 1.0' in str(error.value)
  assert 'seed: stored 0, given 3' in str(error.value)
  c = config(data_file)
  c.log_every_steps = 7  # changes no parameter
  run_folder.open_run(straight[0], c)
  run_folder.open_run(straight[0], config(data_file))


def test_data_may_move_and_may_not_change(straight, data_file, tmp_path):
  run, moved = tmp_path / 'run', str(tmp_path / 'moved.npz')
  shutil.copytree(straight[0], run)
  shutil.copy(data_file, moved)
  assert loop.train(config(moved), run)['AP'] == straight[1]['AP']
  assert run_folder.load_config(run).data.path == moved
  before = contents(run) | {run / 'lock': None}
  tiny.save_data(tmp_path / 'other.npz', num_train=NUM_IMAGES, num_eval=9)
  with pytest.raises(ValueError, match='run was trained with'):
    loop.train(config(str(tmp_path / 'other.npz')), run)
  # It still says where its data lie.
  assert contents(run) | {run / 'lock': None} == before
  tiny.save_data(moved, num_train=NUM_IMAGES, num_eval=9)
  for use in (lambda: loop.train(config(moved), run), lambda: evaluate_run(run, '6')):
    with pytest.raises(ValueError, match='run was trained with'):
      use()


@pytest.fixture(scope='module')
def longer(data_file):
  """The run of `straight` with an epoch more, 9 steps in all."""
  return config(data_file, epochs=3.0)


def test_a_run_is_extended_by_more_epochs(straight, longer, tmp_path, monkeypatch):
  run, other = tmp_path / 'run', tmp_path / 'other'
  shutil.copytree(straight[0], run)
  with pytest.raises(ValueError, match='epochs: stored 2.0, given 3.0') as error:
    loop.train(longer, run)
  assert '--extend' in str(error.value)
  rate = lambda folder, step: {
    line['step']: line['learning_rate']
    for line in files.read_json_lines(folder / 'metrics.jsonl')
    if line['kind'] == 'train'
  }[step]
  before = rate(run, 6)
  shutil.copytree(run, other)
  loop.train(extension.extended(longer, run, 'keep_rate'), run)
  assert evaluated_steps(run)[-1] == 9 and rate(run, 9) == rate(run, 6) == before
  stored = json.loads((run / 'config.json').read_text())
  assert stored['schedule']['extensions'] == [[2.0, 'keep_rate']]
  assert 'After 2 epochs the run was extended by keep_rate' in (
    (run / 'report.html').read_text()
  )
  monkeypatch.setattr(loop, 'write_report', lambda workdir: None)
  with monkeypatch.context() as patch:
    raise_signal_at(patch, 8, signal.SIGTERM)
    with pytest.raises(Preempted, match='Stopped at step 8'):
      loop.train(extension.extended(longer, other, 'keep_rate'), other)
  loop.train(extension.extended(longer, other, 'keep_rate'), other)
  last = [checksums.read(folder / 'checkpoints' / '9') for folder in (run, other)]
  assert last[0] == last[1]


def test_only_a_finished_run_goes_on_for_more_epochs(straight, longer, tmp_path):
  run = tmp_path / 'run'
  with pytest.raises(FileNotFoundError, match='not the folder of a run'):
    extension.extended(longer, run, 'keep_rate')
  shutil.copytree(straight[0], run)
  same = run_folder.load_config(run)
  with pytest.raises(ValueError, match='one of 2.0 epochs: give more'):
    extension.extended(same, run, 'keep_rate')
  c = extension.extended(longer, run, 'keep_rate')
  c.schedule.warmup_steps += 1
  with pytest.raises(ValueError, match='schedule.warmup_steps: stored'):
    run_folder.open_run(run, c)
  c = extension.extended(longer, run, 'new_schedule')
  c.schedule.warmup_steps += 1
  run_folder.open_run(run, c)
  run_folder._write_config(run, json.loads(c.to_json()))
  with pytest.raises(ValueError, match='the last by --extend=new_schedule'):
    extension.extended(longer, run, 'keep_rate')
  run_folder.open_run(run, extension.extended(c, run, 'new_schedule'))
  shutil.rmtree(run)
  shutil.copytree(straight[0], run)
  shutil.rmtree(run / 'checkpoints' / '6')
  (run / 'metrics.jsonl').unlink()  # as where no line is logged
  with pytest.raises(ValueError, match='not finished, its newest step is 4 of 6'):
    loop.train(extension.extended(longer, run, 'keep_rate'), run)
  assert json.loads((run / 'config.json').read_text())['epochs'] == 2.0


def contents(folder):
  """Every file below a folder, but for evaluations of their own."""
  return {
    path: path.read_bytes()
    for path in folder.rglob('*')
    if path.is_file() and 'evaluations' not in path.parts
  }


def test_an_evaluation_writes_nothing_that_the_run_owns(
  straight, data_file, tmp_path, caplog
):
  run, metrics = tmp_path / 'run', straight[1]
  shutil.copytree(straight[0], run)
  config = json.loads((run / 'config.json').read_text())
  config['data']['path'] = str(tmp_path / 'gone.npz')
  (run / 'config.json').write_text(json.dumps(config))
  before = contents(run)
  with pytest.raises(ValueError, match=r'gone\.npz.* --data_path= or --data_dir='):
    evaluate_run(run, '6')
  found = evaluate_run(run, '6', data_path=data_file)
  assert found['AP'] == metrics['AP'] and 'other_data' not in found
  folder = run / 'evaluations' / 'step_6'
  assert json.loads((folder / 'metrics.json').read_text()) == found
  assert (folder / 'report.html').exists() and (folder / 'detections.json').exists()

  other = str(tmp_path / 'test_set.npz')
  tiny.save_data(other, num_train=NUM_IMAGES, num_eval=9)
  assert evaluate_run(run, '4', data_path=other)['num_images'] == 9
  folder = run / 'evaluations' / 'step_4_test_set'
  assert json.loads((folder / 'metrics.json').read_text())['other_data'] == other
  assert other in (folder / 'report.html').read_text()

  (tmp_path / 'disk').write_text('no folder can be made here')
  with caplog.at_level('WARNING', 'gfl_jax'):
    full = evaluate_run(run, '6', data_path=data_file, out=tmp_path / 'disk' / 'x')
  assert full['AP'] == metrics['AP']
  assert [record.levelname for record in caplog.records] == ['WARNING'] * 2
  assert contents(run) == before


def test_data_at_another_path_are_known_by_their_form(tmp_path):
  def name_of(path, name):
    c = tiny.config()
    c.data.name = name
    evaluate._set_places(c.data, str(path), '')
    return c.data.name

  (tmp_path / 'coco' / 'annotations').mkdir(parents=True)
  (tmp_path / 'coco' / 'annotations' / 'instances_val.json').touch()
  (tmp_path / 'x.npz').touch()
  assert name_of(tmp_path / 'coco', 'file') == 'coco_folder'
  assert name_of(tmp_path / 'x.npz', 'coco_folder') == 'file'
  assert name_of(tmp_path, 'coco/2017') == 'coco/2017'  # COCO's zips


def test_a_loaded_config_is_the_one_that_was_given(straight, data_file):
  loaded = run_folder.load_config(straight[0])
  assert loaded.is_locked
  assert json.loads(loaded.to_json()) == json.loads(config(data_file).to_json())


def test_a_loss_that_is_not_finite_stops_the_run(data_file, tmp_path, monkeypatch):
  c = config(data_file)
  true = experiment.Experiment.initial_state

  def poisoned(self, **arguments):
    state = true(self, **arguments)
    update = self.update
    spoil = lambda step, x: jnp.where(step == 3, jnp.nan, x)

    def spoiled(state, batch):
      step = state.step + 0  # the state itself is donated
      state, scalars = update(state, batch)
      return state, scalars | {'loss_box': spoil(step, scalars['loss_box'])}

    self.update = spoiled
    return state

  monkeypatch.setattr(experiment.Experiment, 'initial_state', poisoned)
  with pytest.raises(FloatingPointError, match=r'step 4: .*loss_box=nan') as error:
    loop.train(c, tmp_path)
  run = experiment_of(c)
  ids = [batch_ids for number, batch_ids, _ in run.train_batches(0) if number == 4]
  assert f'image ids of the batch: {ids[0].tolist()}' in str(error.value)
  with Checkpoints(tmp_path / 'checkpoints') as checkpoints:
    assert checkpoints.steps == [2]  # step 4 was due, but its loss was not finite


def test_a_class_count_that_differs_is_refused_and_spoils_nothing(data_file, tmp_path):
  c = config(data_file)
  c.model.num_classes = 80
  with pytest.raises(ValueError, match=r'num_classes=80, but the data has 3 classes'):
    loop.train(c, tmp_path)
  # What the error advises, in the same folder, is not 'another config'.
  run_folder.open_run(tmp_path, config(data_file))
  assert run_folder.load_config(tmp_path).model.num_classes == 3


def test_a_number_that_cannot_be_meant_is_refused_before_a_folder_is_made(tmp_path):
  c = tiny.config()
  c.epochs = 0.0
  with pytest.raises(UserError, match=r'epochs=0\.0'):
    loop.train(c, tmp_path / 'run')
  assert not (tmp_path / 'run').exists()


def test_a_run_goes_on_without_the_file_of_its_pretrained_weights(tmp_path):
  c = tiny.config()
  c.model.backbone.update(pretrained=str(tmp_path / 'gone.npz'), depth=18)
  c.model.backbone.update(norm='frozen_batch_norm', stem='conv7')
  c.model.backbone.widths = (64, 128, 256, 512)

  class TinyData:
    class_names, num_train, num_eval, counters = ('a', 'b', 'c'), 8, 8, {}
    steps_per_epoch = staticmethod(lambda batch_size: 1)
    checksum = 0

  run = experiment_of(c, TinyData())
  assert run.initial_state(pretrained=False).step == 0
  with pytest.raises(FileNotFoundError, match='gone.npz does not exist'):
    run.initial_state()


def test_a_broken_line_of_the_log_does_not_take_the_others_with_it(tmp_path):
  file = tmp_path / 'metrics.jsonl'
  lines = [
    '{"kind": "train", "step": 1}',
    '{"kind": "tr',
    '{"kind": "eval", "step": 2}',
  ]
  file.write_text('\n'.join([*lines, '{"kind": "train", "step": 3}', '']))
  metrics_log.MetricsLog(tmp_path, start_step=2, tensorboard=False).close()
  assert file.read_text().splitlines() == [lines[0], lines[2]]


def test_tensorboard_without_its_extra_says_what_to_install(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, 'tensorboardX', None)
  with pytest.raises(ValueError, match=r"pip install -e '.\[tensorboard\]'"):
    metrics_log.MetricsLog(tmp_path, start_step=0, tensorboard=True)


def test_a_batch_that_the_devices_cannot_share_is_refused(data_file, tmp_path):
  c = config(data_file)
  c.batch_size = 12
  with pytest.raises(ValueError, match='batch_size=12 cannot be split over 8 device'):
    loop.train(c, tmp_path)


def test_tensorboard_events_hold_the_scalars(tmp_path):
  log = metrics_log.MetricsLog(tmp_path, start_step=0, tensorboard=True)
  log.write('train', 3, {'loss': 0.5})
  log.close()
  (events,) = (tmp_path / 'events').iterdir()
  assert b'train/loss' in events.read_bytes()


def test_a_checkout_that_is_not_installed_knows_its_version(monkeypatch):
  installed = importlib.metadata.version

  def version(package):
    if package == 'gfl-jax':
      raise importlib.metadata.PackageNotFoundError(package)
    return installed(package)

  monkeypatch.setattr(importlib.metadata, 'version', version)
  wanted = {'gfl-jax': gfl_jax.__version__, 'jax': jax.__version__}
  assert environment.describe()['versions'].items() >= wanted.items()
  assert manifest.head()['versions'] == wanted


def test_a_folder_in_which_another_process_trains_is_left_alone(tmp_path):
  with run_folder.hold(tmp_path):
    (tmp_path / 'config.json').write_text('of the other')
    with pytest.raises(UserError, match=rf'process {os.getpid()} on .*trains in'):
      loop.train(tiny.config(), tmp_path)
  assert sorted(path.name for path in tmp_path.iterdir()) == ['config.json', 'lock']
  assert (tmp_path / 'config.json').read_text() == 'of the other'


def test_numbers_of_another_config_are_kept_without_a_checkpoint(data_file, tmp_path):
  c, other = config(data_file), config(data_file)
  other.seed = 3
  run_folder.open_run(tmp_path, c)
  (tmp_path / 'metrics.jsonl').write_text('')  # of one that came to no step
  (tmp_path / 'checkpoints' / '2.orbax-checkpoint-tmp').mkdir(parents=True)
  run_folder.open_run(tmp_path, other)
  run_folder.open_run(tmp_path, c)
  (tmp_path / 'metrics.jsonl').write_text('{"kind": "train", "step": 1}\n')
  with pytest.raises(UserError, match='seed: stored 0, given 3'):
    loop.train(other, tmp_path)
  assert run_folder.load_config(tmp_path).seed == 0
  run_folder.open_run(tmp_path, c)


def test_training_in_a_path_that_is_a_pattern_is_refused(tmp_path):
  with pytest.raises(UserError, match=r'lr\[0.1\]'):
    loop.train(tiny.config(), tmp_path / 'lr[0.1]')
  assert not list(tmp_path.iterdir())


def test_unreachable_sides_are_said_before_training(data_file, caplog):
  c = config(data_file)
  c.box.stop = 0.5  # of 32 px: squares of 24 px have sides 12 px from their center
  run = experiment_of(c)
  # Of the bars, 40 x 12 px, two sides of four.
  share, needed = run.unreachable_sides()
  assert share == pytest.approx(0.25) and needed == pytest.approx(20 / 32)
  run.warn_of_unreachable_sides()
  assert '25%' in caplog.text and 'box.stop=1 ' in caplog.text
  state = step.TrainState(0, {}, {}, {}, {})
  assert '25.0% of box sides beyond the bins' in run.description(state)
  c.box.stop = 1.0
  assert 'bins' not in run.description(state)
  c.box.kind = 'dirac'
  assert experiment_of(c, run.dataset).unreachable_sides() == (0.0, 0.0)


def test_numbers_that_show_a_wrong_config_are_warned_of_once(
  tmp_path, data_file, capsys
):
  c = config(data_file)
  c.log_every_steps = 1
  scalars = {'loss': 1.0, 'learning_rate': 0.1, 'clamped_targets': 0.4}
  scalars = {k: jnp.float32(v) for k, v in scalars.items()}
  scalars |= {'dropped_positives': jnp.float32(3)}
  with metrics_log.Monitor(experiment_of(c), tmp_path, 0) as watching:
    for step in (1, 2, 3):
      watching.add(step, scalars, np.arange(8))
  text = capsys.readouterr().out
  assert text.count('box.stop') == 1 and '40%' in text
  assert text.count('max_positives_per_image') == 1
