"""A run's folder as a trained detector."""

import json
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

from gfl_jax.checkpointing.manager import Checkpoints, DamagedCheckpointError
from gfl_jax.evaluation import evaluator
from gfl_jax.export import manifest, programs
from gfl_jax.inference import loading
from gfl_jax.models import build_detector, init_variables
from gfl_jax.training import metrics_log, run_folder, step
from tests import tiny

NAMES, IDS = ('ring', 'disk', 'bar'), (3, 5, 9)


def write_run(folder, *, ema_decay=0.99):
  """A run with steps 1 (AP 0.5) and 2 (AP 0.25); at step n averages are the draws of
  seed n, parameters their halves."""
  c = tiny.config()
  c.ema_decay = ema_decay
  run_folder.open_run(folder, c)
  run_folder.write_classes(folder, NAMES, IDS)
  log = metrics_log.MetricsLog(folder, start_step=0, tensorboard=False)
  with Checkpoints(folder / 'checkpoints') as stored:
    for number, ap in ((1, 0.5), (2, 0.25)):
      state = step.create_state(drawn(number), c)
      half = jax.tree.map(lambda x: x / 2, state.params)
      stored.save(number, state.replace(params=half))
      log.write('eval', number, {'AP': ap})
  log.close()
  return folder


def drawn(seed):
  return init_variables(build_detector(tiny.config()), jax.random.key(seed))


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  return write_run(tmp_path_factory.mktemp('run'))


@pytest.fixture
def copy(run, tmp_path):
  return shutil.copytree(run, tmp_path / 'copy')


def equal(found, expected):
  return jax.tree.all(jax.tree.map(np.array_equal, found, expected))


@pytest.mark.parametrize(
  'which, weights, number, factor',
  [
    ('newest', 'ema', 2, 1),
    ('best', 'ema', 1, 1),
    (1, 'raw', 1, 0.5),
    ('2', 'raw', 2, 0.5),
  ],
)
def test_it_is_the_step_and_the_weights_that_were_asked_for(
  run, which, weights, number, factor
):
  found = loading.load_run(run, which, weights)
  assert equal(found.variables, jax.tree.map(lambda x: x * factor, drawn(number)))
  assert (found.class_names, found.category_ids) == (NAMES, IDS)
  assert found.origin == {'run': str(run), 'step': number, 'weights': weights}
  assert found.config.to_dict() == run_folder.load_config(run).to_dict()


def test_a_run_without_an_average_has_its_parameters(tmp_path):
  found = loading.load_run(write_run(tmp_path, ema_decay=0.0), 1)
  assert equal(found.variables, jax.tree.map(lambda x: x / 2, drawn(1)))
  assert found.origin['weights'] == 'raw'


def test_loading_changes_nothing_and_reads_beside_a_running_save(copy):
  begun = copy / 'checkpoints' / '3.orbax-checkpoint-tmp'
  begun.mkdir()
  with (copy / 'metrics.jsonl').open('a') as log:
    log.write('{"kind": "eval", "step": 3, "AP": 0.75}\n{"kind": "tr')
  before = {file: file.stat().st_mtime_ns for file in copy.rglob('*')}
  assert loading.load_run(copy).origin['step'] == 2
  assert loading.load_run(copy, 'best').origin['step'] == 1  # 3 is not stored yet
  assert {file: file.stat().st_mtime_ns for file in copy.rglob('*')} == before


def test_it_needs_neither_tensorflow_nor_matplotlib(run):
  code = (
    'import sys; from gfl_jax.inference import loading\n'
    f'loading.load_run({str(run)!r})\n'
    'heavy = {"tensorflow", "tensorflow_datasets", "matplotlib"} & set(sys.modules)\n'
    'assert not heavy, heavy'
  )
  subprocess.run([sys.executable, '-c', code], check=True)


@pytest.mark.parametrize('which', ['latest', 7, '-1'])
def test_a_step_that_is_not_there_names_those_that_are(run, which):
  says = rf'step={which}.*stored: \[1, 2\]'
  with pytest.raises(ValueError, match=says):
    loading.load_run(run, which)


def test_other_weights_are_refused(run):
  with pytest.raises(ValueError, match="weights='EMA' must be 'ema' or 'raw'"):
    loading.load_run(run, weights='EMA')


def test_another_architecture_says_what_differs(copy):
  config = json.loads((copy / 'config.json').read_text())
  config['model']['neck']['channels'] = 12
  (copy / 'config.json').write_text(json.dumps(config))
  with pytest.raises(ValueError, match='neck.*stored float32.*expected') as error:
    loading.load_run(copy)
  assert len(str(error.value).splitlines()) == 11  # the first ten


@pytest.mark.parametrize(
  'part, field',
  [('model', 'num_classes'), ('decode', 'score_threshold'), ('data', 'short_side')],
)
def test_a_config_of_another_version_says_what_it_lacks(copy, part, field):
  config = json.loads((copy / 'config.json').read_text())
  del config[part][field]
  (copy / 'config.json').write_text(json.dumps(config))
  says = f'{copy}: the config lacks a field .*{field}'
  with pytest.raises(ValueError, match=says) as error:
    loading.load_run(copy)
  assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
  'name, content, says',
  [
    ('config.json', '{"model": {"num_cl', 'JSONDecodeError'),
    ('config.json', '{}', 'KeyError'),
    ('config.json', '[]', ''),
    ('classes.json', '{"names": ["ri', 'JSONDecodeError'),
    ('classes.json', '{}', "KeyError.*'names'"),
    ('classes.json', '[]', 'TypeError'),
    ('classes.json', '{"names": "abc", "category_ids": [1, 2, 3]}', 'list of str'),
    (
      'classes.json',
      '{"names": ["a", "b", "c"], "category_ids": [1, 2]}',
      '3 names and 2 category_ids',
    ),
  ],
)
def test_a_file_that_is_not_whole_is_named(copy, name, content, says):
  (copy / name).write_text(content)
  with pytest.raises(ValueError, match=f'{copy / name} .*{says}'):
    loading.load_run(copy)


def test_missing_files_are_named(tmp_path):
  c, empty = tiny.config(), tmp_path / 'empty'
  run_folder.open_run(empty, c)
  run_folder.write_classes(empty, NAMES, IDS)
  (empty / 'checkpoints').mkdir()
  with pytest.raises(ValueError, match='no checkpoint'):
    loading.load_run(empty)
  with Checkpoints(empty / 'checkpoints') as stored:
    stored.save(1, step.create_state(drawn(1), c))
  with pytest.raises(ValueError, match='step=best'):
    loading.load_run(empty, 'best')


@pytest.mark.parametrize(
  'missing, says',
  [
    ('config.json', 'not the folder of a run'),
    ('classes.json', 'no classes.json'),
    ('checkpoints', 'has no checkpoints'),
  ],
)
def test_a_part_that_is_missing_is_named(copy, missing, says):
  (copy / missing).rename(copy / 'elsewhere')
  with pytest.raises(FileNotFoundError, match=says):
    loading.load_run(copy)
  assert not (copy / missing).exists()


def test_a_class_without_a_name_is_an_error(copy):
  run_folder.write_classes(copy, NAMES[:2], IDS[:2])
  with pytest.raises(ValueError, match='num_classes=3 and 2 names'):
    loading.load_run(copy)


@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')
def test_a_changed_byte_is_found(copy):
  data = [f for f in (copy / 'checkpoints/2/state').rglob('d/*') if f.is_file()]
  for file in data:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
  with pytest.raises(DamagedCheckpointError, match='step 2'):
    loading.load_run(copy)
  assert loading.load_run(copy, 1).origin['step'] == 1


def test_a_program_finds_what_detect_finds(run):
  trained = loading.load_run(run)
  trained.config.unlock().decode.score_threshold = 0.0  # untrained: all scores are low
  batch = tiny.batch(2)
  batch['scales'][:] = 0.5
  found = programs.jitted(trained)(batch)
  detect = evaluator.make_detect(build_detector(trained.config), trained.config)
  expected = jax.jit(detect)(trained.variables, batch)
  assert found.valid.any() and found.boxes.max() > 64  # in original px
  for name in manifest.OUTPUTS:
    assert isinstance(getattr(found, name), np.ndarray)
    np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
