"""Studies: what is done stays done, what fails is passed over, nothing is mixed."""

import dataclasses
import hashlib
import json
import logging
import pathlib
import shlex
import shutil
import subprocess
import sys
import types

import jax
import numpy as np
import pytest
from absl import flags
from ml_collections import config_flags

from configs.ablations import table
from gfl_jax.studies import plan, record, runner, source_digests
from gfl_jax.training import experiment, loop, run_folder
from gfl_jax.training.parallel import DataParallel
from tests import tiny
from tests.data import sets

ROOT = pathlib.Path(__file__).parents[2]
BETA = table.load_study('beta')
ROWS = BETA.ROWS


@pytest.fixture(scope='module', autouse=True)
def _light_runs():
  """One device, and no page for each run: others test those."""
  with pytest.MonkeyPatch.context() as patch:
    one = lambda mode: DataParallel(mode, jax.devices()[:1])
    patch.setattr(experiment, 'DataParallel', one)
    patch.setattr(loop, 'write_report', lambda workdir: None)
    yield


@pytest.fixture(scope='module')
def data_file(tmp_path_factory):
  """16 black images with a box each; 2 steps of 8 are an epoch."""
  boxes = [[(8 + i, 8, 40 + i, 40)] for i in range(16)]
  path = tmp_path_factory.mktemp('data') / 'tiny.npz'
  sets.memory_set(sets.annotations([(64, 64)] * 16, boxes)).save(path)
  return str(path)


def make_base(data_file):
  c = tiny.config()
  c.data.path = data_file
  c.model.num_classes = 2
  c.epochs = 2.0
  c.eval_every_epochs = 2.0
  c.checkpoint_every_steps = 2
  c.schedule.warmup_steps = 1
  return c


def make_study(data_file, root, *, rows=('1', '2'), seeds=(0, 1), **changes):
  values = dict(
    name='beta',
    file='configs/ablations/beta.py',
    module=BETA,
    chosen=rows,
    base='demo_shapes',
    make_base=lambda: make_base(data_file),
    overrides=(),
    seeds=seeds,
    root=root,
    command='python scripts/ablate.py --study=beta',
  )
  return plan.Study(**(values | changes))


def with_rows(asked, rows, **texts):
  """The study with other rows in its table, and other texts."""
  module = types.SimpleNamespace(**{**vars(asked.module), 'ROWS': rows, **texts})
  return dataclasses.replace(asked, module=module)


def read(asked):
  return json.loads((asked.folder / 'study.json').read_text())


def statuses(asked):
  return [
    (row['name'], run['seed'], run['status'])
    for row in read(asked)['rows']
    for run in row['runs']
  ]


def spy(monkeypatch):
  """Records what loop.train is called with: beta and seed of each call."""
  calls = []
  true = loop.train

  def train(config, workdir, dataset=None):
    calls.append((config.class_loss.beta, config.seed))
    return true(config, workdir, dataset)

  monkeypatch.setattr(loop, 'train', train)
  return calls


def fake_training(monkeypatch, failing=()):
  """As `spy`, but runs only leave metrics; those of a beta in `failing` fail."""
  calls = []

  def train(config, workdir, dataset=None):
    calls.append((config.class_loss.beta, config.seed))
    run_folder.open_run(workdir, config)
    if config.class_loss.beta in failing:
      raise FloatingPointError('step 1: loss=nan')
    (pathlib.Path(workdir) / 'eval').mkdir()
    metrics = {'step': 4, 'AP': 0.5, 'per_class': {}}
    (pathlib.Path(workdir) / 'eval' / 'metrics.json').write_text(json.dumps(metrics))
    return metrics

  monkeypatch.setattr(loop, 'train', train)
  return calls


@pytest.fixture(scope='module')
def finished(data_file, tmp_path_factory):
  """A study of two rows and two seeds that nothing disturbed, and its calls."""
  asked = make_study(data_file, tmp_path_factory.mktemp('root'))
  with pytest.MonkeyPatch.context() as patch:
    calls = spy(patch)
    assert runner.run_study(asked) == []
  return asked, calls


def test_a_study_runs_every_row_once_for_a_seed_before_the_next(finished):
  assert finished[1] == [(1.0, 0), (2.0, 0), (1.0, 1), (2.0, 1)]


def test_a_study_leaves_its_numbers_and_its_report(finished):
  asked, _ = finished
  content = read(asked)
  assert {s for *_, s in statuses(asked)} == {'finished'}
  assert content['environment']['versions']['jax'] and content['git']
  fields = ('devices', 'versions', 'git')
  same = {name: content['environment'][name] for name in fields}
  assert content['environments'] == [same | {'runs': 4}]
  assert content['code'] == source_digests.digest(source_digests.current())
  assert (content['table'], content['question']) == ('1c', BETA.QUESTION)
  row = content['rows'][1]
  assert row['paper'] == {'AP': 39.9, 'AP50': 58.5, 'AP75': 43.0}
  run = row['runs'][1]
  assert (asked.root / run['folder'] / 'config.json').exists()
  assert run['metrics']['step'] == 4 and 'per_class' not in run['metrics']
  assert 0 < run['seconds'] <= content['seconds']
  assert (asked.folder / 'report.html').exists()


def test_each_row_is_trained_with_its_own_number(finished):
  asked, _ = finished
  loss = lambda row: [
    json.loads(line)['loss_class']
    for line in (asked.root / row['runs'][0]['folder'] / 'metrics.jsonl')
    .read_text()
    .splitlines()
    if '"train"' in line
  ]
  one, two = read(asked)['rows']
  assert len(loss(one)) == len(loss(two)) > 0
  # |q - p|^beta with a base below 1: less loss with the larger exponent.
  assert np.all(np.array(loss(two)) < np.array(loss(one)))


@pytest.mark.filterwarnings('ignore:the load_module')  # ml_collections, on Python 3.11
def test_the_command_of_a_run_is_exact(tmp_path):
  asked = make_study(
    None,
    tmp_path,
    make_base=lambda: table.base_config('demo_shapes'),
    overrides=('epochs=3', 'batch_size=32', 'data.canvas=(160, 160)', 'box.stop=4'),
  )
  run = asked.runs()['2', 1]
  command = asked.run_command('2', run)
  assert '--config.epochs=3.0' in command and '--config.seed=1' in command
  argv = ['train', *shlex.split(command)[2:]]
  found = flags.FlagValues()
  config_flags.DEFINE_config_file('config', flag_values=found, sys_argv=argv)
  flags.DEFINE_string('workdir', None, '', flag_values=found)
  found(argv)
  assert json.loads(found.config.to_json()) == json.loads(run.config.to_json())


def test_what_is_finished_is_passed_over(finished, monkeypatch, data_file):
  asked, _ = finished
  calls = spy(monkeypatch)
  before = read(asked)
  assert runner.run_study(asked) == []
  assert calls == [] and read(asked) == before


def test_another_study_with_the_same_config_shares_the_run(
  finished, monkeypatch, data_file
):
  asked, _ = finished
  contributions = table.load_study('contributions').ROWS
  other = make_study(
    data_file,
    asked.root,
    rows=('qfl',),
    seeds=(1,),
    name='contributions',
    overrides=('log_every_steps=7',),  # changes no number
  )
  other = with_rows(other, contributions, BASELINE='qfl')
  calls = spy(monkeypatch)
  assert runner.run_study(other) == [] and calls == []
  (run,) = read(other)['rows'][0]['runs']
  assert run['folder'].startswith('runs/beta.2-seed1-') and run['status'] == 'finished'


def test_an_evaluation_of_another_step_does_not_count_as_the_last(
  data_file, finished, tmp_path
):
  asked, _ = finished
  run = asked.runs()['1', 0]
  file = run.folder / 'eval' / 'metrics.json'
  text = file.read_text()
  file.write_text(json.dumps(json.loads(text) | {'step': 2}))
  try:
    assert run.metrics is None
  finally:
    file.write_text(text)
  assert run.metrics['step'] == 4


def test_a_run_that_fails_is_passed_over_and_tried_again(
  data_file, tmp_path, monkeypatch
):
  asked = make_study(data_file, tmp_path, seeds=(0,))

  with monkeypatch.context() as patch:
    calls = fake_training(patch, failing=[1.0])
    failed = runner.run_study(asked)
  assert failed == ['beta = 1, seed 0: FloatingPointError: step 1: loss=nan']
  assert calls == [(1.0, 0), (2.0, 0)]
  assert statuses(asked) == [('1', 0, 'failed'), ('2', 0, 'finished')]
  run = read(asked)['rows'][0]['runs'][0]
  assert run['error'] == 'FloatingPointError: step 1: loss=nan'
  assert 'Traceback' in (tmp_path / run['folder'] / 'error.txt').read_text()
  runner.write_report(asked)  # of a study with holes
  error_file = tmp_path / run['folder'] / 'error.txt'
  calls = fake_training(monkeypatch)
  assert runner.run_study(asked) == [] and calls == [(1.0, 0)]
  assert statuses(asked) == [('1', 0, 'finished'), ('2', 0, 'finished')]
  assert read(asked)['rows'][0]['runs'][0]['error'] is None
  assert not error_file.exists()


def test_a_run_that_was_cut_off_is_resumed(data_file, tmp_path, monkeypatch, finished):
  asked = make_study(data_file, tmp_path, seeds=(0,))
  straight = finished[0].runs()
  other = straight['2', 0].folder
  shutil.copytree(other, tmp_path / 'runs' / other.name)
  with monkeypatch.context() as patch:
    cut_after(patch, 2)
    with pytest.raises(KeyboardInterrupt):
      runner.run_study(asked)
  assert statuses(asked) == [('1', 0, 'interrupted'), ('2', 0, 'finished')]
  run = asked.runs()['1', 0]
  assert runner.run_study(asked) == []
  assert statuses(asked) == [('1', 0, 'finished'), ('2', 0, 'finished')]
  log = lambda run: [
    (line['step'], line['loss'])
    for line in map(json.loads, (run.folder / 'metrics.jsonl').read_text().splitlines())
    if line['kind'] == 'train'
  ]
  assert log(run) == log(straight['1', 0]) and log(run)[-1][0] == 4


def cut_after(monkeypatch, steps):
  true = loop.Experiment.train_batches

  def cut(self, first_step):
    for number, *rest in true(self, first_step):
      if number > steps:
        raise KeyboardInterrupt
      yield number, *rest

  monkeypatch.setattr(loop.Experiment, 'train_batches', cut)


def test_jobs_share_the_runs_between_them(data_file, tmp_path, monkeypatch):
  calls = fake_training(monkeypatch)
  asked = make_study(data_file, tmp_path, rows=('0', '1', '2'), seeds=(0, 5))
  runner.run_study(asked, job=(1, 2))
  assert calls == [(1.0, 0), (0.0, 5), (2.0, 5)]
  runner.run_study(asked, job=(0, 2))
  assert sorted(calls[3:]) == [(0.0, 0), (1.0, 5), (2.0, 0)]
  assert {status for *_, status in statuses(asked)} == {'finished'}


def test_a_run_that_another_process_is_at_is_passed_over(
  data_file, tmp_path, monkeypatch, caplog
):
  calls = fake_training(monkeypatch)
  asked = make_study(data_file, tmp_path, seeds=(0,))
  key = asked.runs()['1', 0].key
  hold = (
    'import fcntl, sys; f = open(sys.argv[1], "w"); fcntl.flock(f, fcntl.LOCK_EX);'
    'print("held", flush=True); sys.stdin.read()'
  )
  path = tmp_path / 'runs' / '.locks' / key
  path.parent.mkdir(parents=True)
  with subprocess.Popen(
    [sys.executable, '-c', hold, str(path)],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
  ) as other:
    assert other.stdout.readline() == b'held\n'
    with caplog.at_level(logging.INFO, 'gfl_jax'):
      assert runner.run_study(asked) == []
    other.stdin.close()
  assert calls == [(2.0, 0)] and 'runs in another process' in caplog.text
  assert runner.run_study(asked) == [] and calls[1:] == [(1.0, 0)]


def test_progress_says_which_run_and_the_time_left(
  data_file, tmp_path, monkeypatch, caplog
):
  fake_training(monkeypatch)
  asked = make_study(data_file, tmp_path)
  with caplog.at_level(logging.INFO, 'gfl_jax'):
    runner.run_study(asked)
  assert 'Run 1 of 4: beta = 1, seed 0 (' in caplog.text
  assert (
    'Run 4 of 4: beta = 2, seed 1; about 0 min 0 s left, runs to do: 1' in caplog.text
  )


def test_the_time_left_is_the_mean_of_the_finished_runs():
  def run(seconds, other=None, *, metrics=True):
    record = {'seconds': seconds, 'trained_in': other}
    return types.SimpleNamespace(record=record, metrics=metrics)

  def left(runs, count):
    mine = [run(0.0, metrics=False)] * count + runs
    return runner._time_left(dict(enumerate(mine)), dict(enumerate(runs)))

  runs = [run(70.0), run(40.0), run(2.0, 'beta.1')]
  assert left(runs, 3) == '; about 2 min 45 s left, runs to do: 3'
  assert left(runs[1:2], 100) == '; about 1 h 6 min left, runs to do: 100'
  assert left(runs[2:], 2) == '; about 0 min 4 s left, runs to do: 2'
  assert left([], 1) == ''


def test_the_seconds_of_compiling_are_a_part_of_a_runs(finished):
  record = finished[0].runs()['1', 0].record
  assert 0.05 < record['compiling'] < record['seconds']
  assert read(finished[0])['compiling'] > record['compiling']


def test_runs_of_another_code_are_not_mixed(data_file, tmp_path, monkeypatch):
  calls = fake_training(monkeypatch)
  asked = make_study(data_file, tmp_path)
  code = {'ops/nms.py': 'a', 'ops/boxes.py': 'b', 'ops/gone.py': 'c'}
  monkeypatch.setattr(source_digests, 'current', lambda: code)
  runner.run_study(asked)
  other = {'ops/nms.py': 'x', 'ops/boxes.py': 'b', 'ops/new.py': 'c'}
  monkeypatch.setattr(source_digests, 'current', lambda: other)
  differing = '3 of its files differ: ops/gone.py, ops/new.py, ops/nms.py'
  with pytest.raises(ValueError, match=f'{differing}. Give another --root'):
    runner.run_study(asked)
  before = read(asked)
  (asked.folder / 'report.html').unlink()
  assert runner.write_report(asked).exists() and read(asked) == before
  assert before['code'] == before['rows'][0]['runs'][0]['code']
  assert before['code'] == source_digests.digest(code) != source_digests.digest(other)
  # As studies of before have it.
  file = asked.runs()['1', 0].folder / 'study_run.json'
  file.write_text(json.dumps(json.loads(file.read_text()) | {'code': 'aaaa'}))
  monkeypatch.setattr(source_digests, 'current', lambda: code)
  with pytest.raises(ValueError, match=r'\(aaaa\).* Give another --root'):
    runner.run_study(asked)
  assert len(calls) == 4


def test_the_code_is_that_of_the_sources_that_make_numbers(tmp_path, monkeypatch):
  copied = shutil.copytree(ROOT / 'gfl_jax', tmp_path / 'gfl_jax')
  monkeypatch.setattr(source_digests, '_PACKAGE', copied)
  current = source_digests.current.__wrapped__
  before = current()
  assert before == source_digests.current()

  def changed(name, *replacement):
    content = (copied / name).read_bytes()
    (copied / name).write_bytes(content.replace(*replacement))
    now = current()
    (copied / name).write_bytes(content)
    return {file for file in before | now if before.get(file) != now.get(file)}

  covered = (
    'ops/nms.py',
    'data/shapes.py',  # imported only where it is needed
    'training/step.py',
    'evaluation/coco_metrics.py',
  )
  for name in covered:
    digest = hashlib.sha256((copied / name).read_bytes()).hexdigest()
    assert before[name] == digest[:12]  # of its content alone, on any Python
    assert changed(name, b'1', b'2') == {name}
    assert changed(name, b'\n', b'\r\n') == set()  # as git may check it out
  others = (
    *('reports/report.py', 'launch.py', 'studies/runner.py', 'multihost/watchdog.py'),
    *('inference/verified_export.py', 'export/onnx/model.py', 'export/params.py'),
  )
  for name in others:
    assert changed(name, b'1', b'2') == set(), name
  assert all((copied / name).exists() for name in source_digests._NO_NUMBERS)


def test_a_call_with_less_leaves_what_is_finished(data_file, tmp_path, monkeypatch):
  calls = fake_training(monkeypatch, failing=[4.0])
  runner.run_study(make_study(data_file, tmp_path, rows=('1', '4'), seeds=(0, 1)))
  asked = make_study(data_file, tmp_path, rows=('0', '2'), seeds=(1,))
  assert runner.run_study(asked) == [] and len(calls) == 6
  assert statuses(asked) == [
    (row, seed, 'finished') for row, seed in [('0', 1), ('1', 0), ('1', 1), ('2', 1)]
  ]
  command = read(asked)['command']
  assert command.endswith('ablate.py --study=beta --seeds=0,1 --rows=0,1,2')
  runner.run_study(make_study(data_file, tmp_path, rows=tuple(ROWS), seeds=(0, 2)))
  assert read(asked)['command'].endswith('ablate.py --study=beta --seeds=0,1,2')
  before = read(asked)
  runner.write_report(asked)
  assert read(asked) == before


def test_a_report_of_a_study_that_was_changed_is_not_replaced(
  data_file, tmp_path, monkeypatch
):
  calls = fake_training(monkeypatch)
  asked = make_study(data_file, tmp_path, overrides=('epochs=2', 'ema_decay=0.5'))
  runner.run_study(asked)
  before, calls[:] = read(asked), []
  runner.run_study(dataclasses.replace(asked, overrides=('ema_decay=0.5', 'epochs=2')))
  assert calls == []
  before = read(asked)
  gone = lambda: make_base(str(tmp_path / 'gone.npz'))  # data are not looked for
  for changes in ({'overrides': ('epochs=2',)}, {'base': 'bccd'}):
    for function in (runner.run_study, runner.write_report):
      with pytest.raises(ValueError, match='give the same, or another --root') as error:
        function(dataclasses.replace(asked, make_base=gone, **changes))
      assert before['command'] in str(error.value)
  changed = {'1': ROWS['1']._replace(change=ROWS['0'].change)}
  with pytest.raises(ValueError, match="row '1', seed 0 by another config .* --root"):
    runner.run_study(
      with_rows(dataclasses.replace(asked, chosen=['2']), ROWS | changed)
    )
  assert calls == [] and read(asked) == before


def test_a_study_of_which_nothing_was_run_may_become_another(
  data_file, tmp_path, monkeypatch
):
  asked = make_study(data_file, tmp_path, seeds=(0,))
  fake_training(monkeypatch, failing=[1.0])
  record.write(asked, asked.runs())
  other = dataclasses.replace(asked, overrides=('epochs=2', 'ema_decay=0.5'))
  runner.run_study(other)
  assert read(asked)['overrides'] == list(other.overrides)
  content = read(asked)
  for row in content['rows']:  # as where the process was killed
    row['runs'][0]['status'] = 'missing'
  (asked.folder / 'study.json').write_text(json.dumps(content))
  with pytest.raises(ValueError, match='another --root'):
    runner.run_study(asked)


def test_a_report_needs_a_study(data_file, tmp_path):
  asked = make_study(data_file, tmp_path / 'misspelt')
  with pytest.raises(ValueError, match='there is no .*misspelt/beta/study.json'):
    runner.write_report(asked)
  assert not list(tmp_path.iterdir())


def test_the_log_says_with_what_rows_are_compared_instead(
  data_file, tmp_path, monkeypatch, caplog
):
  fake_training(monkeypatch)
  rows = ROWS | {'4': ROWS['4']._replace(baseline='2.5')}

  def logged(root, *chosen):
    caplog.clear()
    asked = make_study(data_file, tmp_path / root, rows=chosen, seeds=(0,))
    with caplog.at_level(logging.INFO, 'gfl_jax'):
      runner.run_study(with_rows(asked, rows))
    return caplog.text

  text = logged('a', '1', '4')
  assert "'2.5' is not among the rows" in text and "with '1' instead: 4." in text
  text = logged('a', '2')  # what is finished stays
  assert "'2.5' is not among the rows" in text and "with '2' instead: 4." in text
  text = logged('c', '0', '1')
  assert "'2' is not among the rows" in text and "with '0' instead: 1." in text
  assert 'baseline' not in logged('a', '2.5') + logged('b', '1')


def test_a_row_keeps_its_own_baseline_where_that_is_there(
  data_file, tmp_path, monkeypatch
):
  fake_training(monkeypatch)
  rows = ROWS | {'1': ROWS['1']._replace(baseline='4')}
  asked = make_study(data_file, tmp_path, rows=('1', '2'), seeds=(0,))
  asked = with_rows(asked, rows)
  baselines = lambda: [row['baseline'] for row in read(asked)['rows']]
  runner.run_study(asked)
  assert baselines() == [None, None] and read(asked)['baseline'] == '2'
  runner.run_study(dataclasses.replace(asked, chosen=['4']))
  assert baselines() == ['4', None, None]
  content = read(asked)
  for row in content['rows']:  # as studies of before have it
    del row['baseline']
  (asked.folder / 'study.json').write_text(json.dumps(content))
  runner.write_report(asked)
  assert baselines() == ['4', None, None]
  other = make_study(data_file, tmp_path / 'other', rows=('0', '1'), seeds=(0,))
  runner.run_study(other)
  assert read(other)['baseline'] == '0'


def test_runs_of_several_machines_are_counted(data_file, tmp_path, monkeypatch):
  fake_training(monkeypatch)
  asked = make_study(data_file, tmp_path)
  runner.run_study(asked)
  file = asked.runs()['1', 1].folder / 'env.json'
  file.write_text(json.dumps(json.loads(file.read_text()) | {'devices': '1 x H100'}))
  runner.write_report(asked)
  found = [(one['devices'], one['runs']) for one in read(asked)['environments']]
  assert [runs for _, runs in found] == [3, 1] and found[1][0] == '1 x H100'


def test_a_study_that_was_moved_from_its_runs_is_rendered_as_it_is(
  data_file, tmp_path, monkeypatch
):
  fake_training(monkeypatch)
  asked = make_study(data_file, tmp_path)
  runner.run_study(asked)
  before = read(asked)
  shutil.rmtree(tmp_path / 'runs')
  (asked.folder / 'report.html').unlink()
  assert runner.write_report(asked).exists() and read(asked) == before


def test_a_row_that_decodes_differently_takes_the_trained_network(finished, data_file):
  asked, _ = finished

  def change(c):
    ROWS['2'].change(c)
    c.decode.update(score_threshold=0.0, max_detections=1)

  rows = {'2': ROWS['2'], 'one': ROWS['2']._replace(change=change)}
  other = make_study(data_file, asked.root, rows=('one',), name='decoding')
  other = with_rows(other, rows)
  assert runner.run_study(other) == []
  source, run = asked.runs()['2', 1], other.runs()['one', 1]
  assert run.record['trained_in'] == source.folder.name
  assert 'trained_in' in source.record and source.record['trained_in'] is None
  assert run.metrics['step'] == 4
  detections = lambda run: json.loads((run.folder / 'eval/detections.json').read_text())
  assert not detections(source) and len(detections(run)) == 16
  lines = lambda run, kind: [
    line
    for line in map(json.loads, (run.folder / 'metrics.jsonl').read_text().splitlines())
    if line['kind'] == kind
  ]
  assert lines(run, 'train') == lines(source, 'train')
  (own,) = lines(run, 'eval')
  assert own['AP'] == run.metrics['AP'] and own['step'] == 4
  assert other.runs()['one', 0].record['trained_in'] != run.record['trained_in']


def test_the_data_are_read_once(data_file, tmp_path, monkeypatch):
  fake_training(monkeypatch)
  loaded, load = [], experiment.load_dataset
  monkeypatch.setattr(
    experiment, 'load_dataset', lambda config: loaded.append(config) or load(config)
  )
  rows = ROWS | {'both': table.load_study('contributions').ROWS['both']}
  asked = make_study(data_file, tmp_path, rows=('1', '2', 'both'))
  runner.run_study(with_rows(asked, rows))
  assert len(loaded) == 1


def test_one_of_several_processes_is_an_error(data_file, tmp_path, monkeypatch):
  monkeypatch.setattr(jax, 'process_count', lambda: 2)
  with pytest.raises(ValueError, match='this is one of 2 processes: .*--jobs='):
    runner.run_study(make_study(data_file, tmp_path))


@pytest.mark.parametrize(
  'rows, text, is_lost',
  [
    (('2', '1'), 'class_loss.beta=1', True),  # lost in row 2
    (('1',), 'class_loss.beta=1', False),  # what the row sets, too
    (('1', '2'), 'box_loss.weighting=uniform', True),
    (('1', '2'), 'box_loss.weight=1', False),
    (('wide',), 'box.num_bins=17', False),  # the row counts from it,
    (('wide',), 'box.num_bins=12', False),  # and could not run without this one
  ],
)
def test_an_override_that_a_row_sets_itself(rows, text, is_lost, tmp_path):
  def widen(c):
    if c.box.num_bins > 30:
      raise ValueError('not whole')
    c.box.num_bins *= 2

  base = lambda: table.base_config('demo_shapes')
  asked = make_study(None, tmp_path, rows=rows, make_base=base, overrides=(text,))
  wide = {'wide': ROWS['2']._replace(change=widen)}
  asked = with_rows(asked, ROWS | wide)
  if is_lost:
    message = f"row '[12]' on base 'demo_shapes': --set={text} has no effect"
    with pytest.raises(ValueError, match=message):
      asked.runs()
  else:
    assert asked.runs()


def test_missing_data_is_an_error_before_any_run(data_file, tmp_path, monkeypatch):
  calls = fake_training(monkeypatch)
  asked = make_study(str(tmp_path / 'gone.npz'), tmp_path / 'root')
  with pytest.raises(ValueError, match='gone.npz'):
    runner.run_study(asked)
  with pytest.raises(ValueError, match='2 classes .* give --set=model.num_classes=2'):
    runner.run_study(
      make_study(data_file, tmp_path, overrides=('model.num_classes=3',))
    )
  assert calls == [] and not list(tmp_path.rglob('config.json'))


def test_a_row_that_cannot_run_is_an_error_before_any_run(data_file, tmp_path):
  asked = make_study(data_file, tmp_path, overrides=('batch_size=0',))
  with pytest.raises(ValueError, match="row '1' on base 'demo_shapes': .*batch_size=0"):
    runner.run_study(asked)


def ablate(*arguments):
  return subprocess.run(
    [sys.executable, 'scripts/ablate.py', *arguments],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
  )


def test_the_script_names_what_there_is():
  listed = ablate('--list')
  assert listed.returncode == 0 and 'beta: Beta of quality focal loss' in listed.stdout
  for words in (BETA.QUESTION, "paper's AP 39.0   beta = 1\n", 'beta = 2 (baseline)'):
    assert words in listed.stdout
  assert 'bases: bccd, coco128, demo_shapes' in listed.stdout
  bad = ablate('--study=beta', '--base=demo_shape')
  assert bad.returncode == 1 and "no base 'demo_shape'; there are: bccd" in bad.stderr
  assert 'Traceback' not in bad.stderr
  report = ablate('--study=beta', '--report', '--root=/tmp/is/not/there')
  assert report.returncode == 1 and 'not/there/beta/study.json' in report.stderr


def test_a_report_takes_the_base_and_the_overrides_from_the_study(
  data_file, tmp_path, monkeypatch
):
  fake_training(monkeypatch)
  own = shutil.copy(ROOT / 'configs' / 'ablations' / 'beta.py', tmp_path / 'mine.py')
  base = str(tmp_path / 'photos.py')  # needed by runs alone
  changes = {'name': 'mine', 'base': base, 'overrides': ('ema_decay=0.5',)}
  runner.run_study(make_study(data_file, tmp_path, **changes))
  (tmp_path / 'mine' / 'report.html').unlink()
  report = ablate(f'--study={own}', '--report', f'--root={tmp_path}')
  assert report.returncode == 0, report.stderr
  assert base in (tmp_path / 'mine' / 'report.html').read_text()
  other = ablate(
    f'--study={own}', '--report', f'--root={tmp_path}', '--base=demo_shapes'
  )
  assert other.returncode == 1 and 'another base or other --set' in other.stderr
