"""Detectors of mmdet as runs: the same parameters, and all that a run can do."""

import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gfl_jax.checkpointing.manager import Checkpoints
from gfl_jax.data.coco_json import COCO_CATEGORY_IDS, COCO_NAMES
from gfl_jax.inference import loading, verified_export
from gfl_jax.models import build_detector
from gfl_jax.training import importing, loop
from gfl_jax.training.evaluate import evaluate_run
from gfl_jax.weights import class_names, mmdet, state_dicts
from tests import golden_weights, tiny
from tests.data import sets


def tiny_config(**data):
  """A detector that mmdet can describe: FrozenBatchNorm, the stem of ResNet."""
  c = tiny.config()
  c.model.backbone.update(stem='conv7', norm='frozen_batch_norm')
  c.data.update(data)
  return c


@pytest.fixture(scope='module')
def variables():
  """Random numbers; small and positive, as variances must be."""
  init = build_detector(tiny_config()).init
  shapes = jax.eval_shape(init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
  rng = np.random.default_rng(0)
  draw = lambda x: rng.uniform(0.01, 0.02, x.shape).astype(np.float32)
  return jax.tree.map(draw, shapes)


@pytest.fixture(scope='module')
def checkpoint(variables, tmp_path_factory):
  path = tmp_path_factory.mktemp('mmdet') / 'gfl.npz'
  np.savez(path, **mmdet.to_mmdet(variables))
  return path


def import_detector(checkpoint, workdir, config=None, **changes):
  arguments = {'class_names': 'cat,dog,cow', 'new_head': False}
  stored = state_dicts.read_state_dict(checkpoint, changes.pop('weights', 'ema'))
  config = config or tiny_config()
  importing.import_detector(stored, workdir, config, **arguments | changes)
  return loading.load_run(workdir)


def assert_equal(tree, expected):
  assert jax.tree.structure(tree) == jax.tree.structure(expected)
  jax.tree.map(np.testing.assert_array_equal, tree, expected)


def test_the_authors_r50_is_a_run_with_the_same_variables_bit_for_bit(tmp_path):
  torch = pytest.importorskip('torch')
  state = golden_weights.state_dict('model_r50')
  tensors = {name: torch.from_numpy(np.array(x)) for name, x in state.items()}
  meta = {'dataset_meta': {'classes': COCO_NAMES}}
  torch.save({'state_dict': tensors, 'meta': meta}, tmp_path / 'r50.pth')
  config = golden_weights.config('model_r50')
  trained = import_detector(
    tmp_path / 'r50.pth', tmp_path / 'run', config, class_names=''
  )
  assert_equal(trained.variables, golden_weights.variables('model_r50'))
  assert trained.class_names == COCO_NAMES
  assert trained.category_ids == COCO_CATEGORY_IDS
  assert trained.config.to_json() == config.to_json()


def test_an_imported_run_can_be_evaluated_and_trained_on(
  checkpoint, variables, tmp_path
):
  images = np.random.default_rng(0).integers(0, 256, (8, 64, 64, 3), np.uint8)
  annotations = sets.annotations([(64, 64)] * 8, [[(8, 8, 40, 40)]] * 8)
  split = annotations, sets.memory_pixels(list(images))
  sets.MemoryDataset(('cat', 'dog', 'cow'), (7, 8, 9), split, split).save(
    tmp_path / 'data.npz'
  )
  config = tiny_config(path=str(tmp_path / 'data.npz'))
  config.update(epochs=1.0, ema_decay=0.99)
  workdir = tmp_path / 'run'
  assert_equal(import_detector(checkpoint, workdir, config).variables, variables)

  metrics = evaluate_run(workdir, 'newest')
  assert metrics['step'] == 0 and metrics['num_images'] == 8
  loop.train(config, workdir)
  moved = jax.tree.map(
    lambda new, old: np.abs(new - old).max(),
    loading.load_run(workdir, weights='raw').variables['params'],
    variables['params'],
  )
  assert 0 < max(jax.tree.leaves(moved['head'])) < 0.1  # one step from there

  (workdir / 'classes.json').write_text(
    '{"names": ["cat", "cow", "dog"], "category_ids": [7, 8, 9]}'
  )
  for use in (lambda: loop.train(config, workdir), lambda: evaluate_run(workdir, '1')):
    with pytest.raises(
      ValueError, match="class 1 is 'cow' in .* and 'dog' in the data"
    ):
      use()


def test_a_new_head_is_drawn_for_the_classes_of_the_config(
  checkpoint, variables, tmp_path
):
  config = tiny_config()
  config.model.num_classes = 5
  run = import_detector(
    checkpoint, tmp_path / 'run', config, class_names='a,b,c,d,e', new_head=True
  )
  params, expected = dict(run.variables['params']), dict(variables['params'])
  head, expected_head = dict(params.pop('head')), dict(expected.pop('head'))
  drawn = head.pop('class_output')
  assert drawn['kernel'].shape == (3, 3, 8, 5)
  assert 0.009 < drawn['kernel'].std() < 0.011 and abs(drawn['kernel'].mean()) < 0.002
  np.testing.assert_allclose(drawn['bias'], np.log(0.01 / 0.99), rtol=1e-6)
  del expected_head['class_output']
  assert_equal((head, params), (expected_head, expected))


def test_a_run_or_an_export_is_a_start_for_other_classes(
  checkpoint, variables, tmp_path, caplog
):
  ours = import_detector(checkpoint, tmp_path / 'run')
  verified_export.write(ours, 'params', tmp_path / 'export')
  five = tiny_config()
  five.model.num_classes = 5

  def start(source, target, config, class_names='a,b,c,d,e', new_head=True):
    stored = loading.load_trained(tmp_path / source)
    importing.import_detector(
      stored, tmp_path / target, config, class_names=class_names, new_head=new_head
    )
    return loading.load_run(tmp_path / target)

  assert_equal(loading.load_trained(tmp_path / 'run', step='0').variables, variables)
  run = start('export', 'x', five)
  assert run.class_names == tuple('abcde') and not caplog.messages
  params, head = dict(run.variables['params']), dict(variables['params']['head'])
  assert params['head']['class_output']['kernel'].shape == (3, 3, 8, 5)
  head['class_output'] = params['head']['class_output']
  assert_equal(params, {**variables['params'], 'head': head})

  wider, points, deeper = tiny_config(), tiny_config(), tiny_config()
  wider.box.num_bins = 17
  points.points.offset = 0.5
  deeper.model.neck.channels = 16
  for config, differing in (
    (wider, 'box.num_bins: stored 9, given 17'),
    (deeper, 'model.neck.channels: stored 8, given 16'),
    (five, 'has 3 classes, but model.num_classes=5'),
  ):
    with pytest.raises(ValueError, match=differing):
      start('run', 'y', config, class_names='', new_head=False)
  assert not (tmp_path / 'y').exists()
  same = start('run', 'y', points, class_names='', new_head=False)
  assert_equal(same.variables, variables)
  assert (same.class_names, same.category_ids) == (ours.class_names, ours.category_ids)
  assert 'points.offset: stored 0.0, given 0.5' in caplog.text
  with pytest.raises(ValueError, match="step='0'"):
    loading.load_trained(tmp_path / 'export', step='0')


def test_classes_are_called_as_a_json_says(checkpoint, tmp_path):
  categories = [{'id': i, 'name': n} for i, n in ((4, 'cat'), (2, 'dog'), (9, 'cow'))]
  (tmp_path / 'x.json').write_text(json.dumps({'categories': categories}))
  run = import_detector(
    checkpoint, tmp_path / 'run', class_names=str(tmp_path / 'x.json')
  )
  assert run.class_names == ('cat', 'dog', 'cow') and run.category_ids == (4, 2, 9)
  named = import_detector(checkpoint, tmp_path / 'named')
  assert named.class_names == ('cat', 'dog', 'cow') and named.category_ids == (1, 2, 3)


def json_of(path, *categories):
  listed = [{'id': number, 'name': name} for number, name in categories]
  path.write_text(json.dumps({'categories': listed}))
  return str(path)


def test_classes_that_the_checkpoint_names_keep_its_order(tmp_path, caplog):
  stored = ('cat', 'dog', 'cow')
  classes = lambda given: class_names.choose_classes(given, stored, 'x.pth')
  path = tmp_path / 'x.json'
  assert classes(json_of(path, (4, 'cow'), (2, 'cat'), (9, 'dog'))) == (
    stored,
    (2, 9, 4),
  )
  for categories, message in (
    (((4, 'cow'), (2, 'cat')), r"json has \[\], only the checkpoint has \['dog'\]"),
    (((1, 'cow'), (1, 'cat'), (3, 'dog')), r'category ids .* twice.*\[1\]'),
    (((1, 'cow'), (2, 'cow'), (3, 'dog')), r"names of classes .* twice.*\['cow'\]"),
  ):
    with pytest.raises(ValueError, match=message):
      classes(json_of(path, *categories))
  with pytest.raises(ValueError, match='in another order .*cat,dog,cow'):
    classes('dog,cat,cow')
  assert classes('cat, dog ,cow') == (stored, (1, 2, 3)) and not caplog.messages
  assert classes('Katze,Hund,Kuh')[0] == ('Katze', 'Hund', 'Kuh')
  assert caplog.messages == [
    'The classes cat, dog, cow are now called Katze, Hund, Kuh.'
  ]


def test_an_import_that_failed_can_be_repeated(
  checkpoint, variables, tmp_path, monkeypatch
):
  def disk_full(self, step, state):
    (self._folder / '0.orbax-checkpoint-tmp-1').mkdir()
    raise OSError('No space left on device')

  with monkeypatch.context() as patch:
    patch.setattr(Checkpoints, 'save', disk_full)
    with pytest.raises(OSError, match='No space left'):
      import_detector(checkpoint, tmp_path / 'run')
  assert_equal(import_detector(checkpoint, tmp_path / 'run').variables, variables)


def with_arrays(path, variables, **changes):
  """The checkpoint with some arrays more or others."""
  np.savez(path, **mmdet.to_mmdet(variables) | changes)
  return path


def test_what_does_not_fit_is_an_error_that_says_what_to_give(
  checkpoint, variables, tmp_path
):
  workdir = tmp_path / 'run'

  def fails(message, path=checkpoint, config=None, **changes):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
      import_detector(path, workdir, config, **changes)
    assert not workdir.exists()

  fails('give --class_names=cat,dog .* or --class_names=FILE.json', class_names='')
  fails(
    r'2 names of classes \(cat, dog\) for model.num_classes=3', class_names='cat,dog'
  )
  fails(r"twice or .*empty: \['', 'cat'\]", class_names='cat,cat,')
  fails('class_names=none.json does not exist', class_names='none.json')
  (tmp_path / 'x.json').write_text('{"categories": ["cat"]}')
  fails('x.json is not in COCO form', class_names=str(tmp_path / 'x.json'))

  five = tiny_config()
  five.model.num_classes = 5
  fails(
    'has 3 classes.*num_classes=3; or.* 5 other classes, give --new_head', config=five
  )
  fails('give --class_names=cat,dog', config=five, new_head=True, class_names='')
  fails('give --config.model.num_classes=2,', new_head=True, class_names='cat,dog')
  deeper = tiny_config()
  deeper.model.backbone.depth = 18
  differ = 'names of the state dict and of the model differ'
  fails(differ, config=deeper, class_names='cat')
  box = tiny_config().box
  bins = np.linspace(box.start, box.stop, box.num_bins, dtype=np.float32)
  old = with_arrays(
    tmp_path / 'old.npz', variables, **{'bbox_head.distribution_project.project': bins}
  )
  fails('give --config.points.offset=0.5', path=old)
  config = tiny_config()
  config.batch_size = 0
  fails('batch_size=0 must be', config=config)

  config = tiny_config()
  config.points.offset = 0.5
  import_detector(old, workdir, config)
  with pytest.raises(ValueError, match='holds a run already: take another --workdir'):
    import_detector(checkpoint, workdir)


def test_the_script_needs_no_tensorflow_and_tells_an_error_in_a_line(
  checkpoint, tmp_path
):
  code = (
    'import runpy, sys; sys.modules["tensorflow"] = None; sys.path.insert(0, ".");'
    ' sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name="__main__")'
  )
  done = subprocess.run(
    [
      *(sys.executable, '-c', code, 'scripts/import_weights.py'),
      *(f'--checkpoint={checkpoint}', f'--workdir={tmp_path / "run"}'),
      *('--config=configs/demo_shapes.py', '--class_names=square,disc'),
    ],
    cwd=pathlib.Path(__file__).parents[2],
    env=os.environ | {'GFL_JAX_LAUNCHED': '1'},
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 1
  assert f'error: {checkpoint} has 3 classes' in done.stderr
  assert 'Traceback' not in done.stderr
