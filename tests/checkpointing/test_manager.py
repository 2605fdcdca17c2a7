import gc
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gfl_jax.checkpointing import checksums
from gfl_jax.checkpointing.manager import Checkpoints, DamagedCheckpointError
from gfl_jax.errors import StorageError
from gfl_jax.files import check_folder

# Of several leaves that cannot be read, orbax waits for the first one's error alone.
pytestmark = pytest.mark.filterwarnings(
  'ignore::pytest.PytestUnraisableExceptionWarning'
)


@pytest.fixture(scope='module', autouse=True)
def _no_errors_left_over():
  yield
  gc.collect()  # while they are ignored


def state(value):
  return {'step': jnp.int32(value), 'params': {'w': jnp.full((3, 2), 0.5 + value)}}


def save(folder, aps):
  """A step for each AP; those with None are not evaluated."""
  with Checkpoints(folder) as ckpt:
    for step, ap in enumerate(aps):
      ckpt.save(step, state(step))
      if ap is not None:
        ckpt.aps[step] = ap


def known(aps):
  return {step: ap for step, ap in enumerate(aps) if ap is not None}


def data_files(folder):
  """The files that hold the arrays, the largest first."""
  files = [
    f for f in (folder / 'state').rglob('*') if f.is_file() and 'd' == f.parent.name
  ]
  return sorted(files, key=lambda f: -f.stat().st_size)


@pytest.mark.parametrize(
  'aps, kept, best',
  [
    ([0.5, 0.9, 0.3, 0.2, 0.1], [1, 3, 4], 1),
    ([0.1, 0.2, None, None], [1, 2, 3], 1),
    ([None, None, None], [1, 2], None),
    ([0.5, None, 0.9, None, None, 0.7], [2, 4, 5], 2),
    ([0.0, None, None, None], [0, 2, 3], 0),
  ],
)
def test_the_two_newest_and_the_best_are_kept(tmp_path, aps, kept, best):
  save(tmp_path, aps)
  with Checkpoints(tmp_path, known(aps)) as ckpt:
    assert ckpt.steps[-2:] == kept[-2:]
    assert set(kept) <= set(ckpt.steps)
    assert ckpt.best_step == best


def test_the_best_step_of_an_earlier_start_is_kept(tmp_path):
  save(tmp_path, [0.25, None])
  with Checkpoints(tmp_path, {0: 0.25, 1: None}) as ckpt:  # 1 has no boxes
    for step in (2, 3, 4):
      ckpt.save(step, state(step))
    ckpt.wait()
    assert ckpt.steps == [0, 3, 4] and ckpt.find('best') == 0
    ckpt.aps[4] = 0.5
    ckpt.save(5, state(5))
    ckpt.wait()
    assert ckpt.steps == [4, 5] and ckpt.find('best') == 4
    assert 5 not in ckpt.aps


def test_aps_after_the_restored_step_are_forgotten(tmp_path):
  folder = tmp_path / 'checkpoints'
  save(folder, [None, None, None])
  for file in data_files(folder / '2'):
    file.write_bytes(b'')
  with Checkpoints(folder, {1: 0.25, 2: 0.5, 3: 0.75}) as ckpt:
    assert ckpt.restore_newest(state(0))[1] == 1
    assert [step in ckpt.aps for step in (1, 2, 3)] == [True, False, False]
    ckpt.save(2, state(2))
    ckpt.wait()
    assert ckpt.best_step == 1
  with Checkpoints(tmp_path / 'new', {2: 0.5}) as ckpt:
    assert ckpt.restore_newest(state(0)) is None and 2 not in ckpt.aps


def test_a_restored_state_is_the_saved_one(tmp_path):
  save(tmp_path, [None])
  with Checkpoints(tmp_path) as ckpt:
    restored, step = ckpt.restore_newest(state(0))
  assert step == 0
  jax.tree.map(np.testing.assert_array_equal, restored, state(0))


def test_an_empty_folder_is_no_error(tmp_path):
  with Checkpoints(tmp_path) as ckpt:
    assert ckpt.restore_newest(state(0)) is None
    assert ckpt.steps == []


@pytest.mark.parametrize('fault', ['truncated', 'deleted', 'bit'])
def test_a_damaged_checkpoint_is_named_and_the_one_before_restored(
  tmp_path, fault, caplog
):
  folder = tmp_path / 'checkpoints'
  save(folder, [None, None])
  for file in data_files(folder / '1'):
    content = bytearray(file.read_bytes())
    if fault == 'truncated':
      file.write_bytes(content[: len(content) // 2])
    elif fault == 'deleted':
      file.unlink()
    else:
      content[len(content) // 2] ^= 1
      file.write_bytes(content)
  with Checkpoints(folder) as ckpt:
    restored, step = ckpt.restore_newest(state(0))
    assert step == restored['step'] == 0
    assert 'Damaged' in caplog.text and 'from step 0: step 1:' in caplog.text
    assert ckpt.steps == [0]  # so that step 1 can be saved again
    assert (tmp_path / 'damaged' / '1.0').exists()
    ckpt.save(1, state(1))
  with Checkpoints(folder) as ckpt:
    assert ckpt.restore_newest(state(0))[1] == 1


def test_intact_arrays_of_another_step_are_found(tmp_path):
  save(tmp_path, [None, None])
  shutil.rmtree(tmp_path / '1' / 'state')  # as a backup of another moment leaves it
  shutil.copytree(tmp_path / '0' / 'state', tmp_path / '1' / 'state')
  with Checkpoints(tmp_path) as ckpt:
    with pytest.raises(DamagedCheckpointError, match="wrong checksum of .*'params.w'"):
      ckpt.restore(state(0), 1)


def test_none_readable_is_an_error_not_a_fresh_start(tmp_path):
  save(tmp_path / 'checkpoints', [None, None])
  for step in '01':
    for file in data_files(tmp_path / 'checkpoints' / step):
      file.write_bytes(b'')
  with Checkpoints(tmp_path / 'checkpoints') as ckpt:
    with pytest.raises(
      DamagedCheckpointError, match=r'none of the checkpoints \[0, 1\]'
    ):
      ckpt.restore_newest(state(0))
    assert ckpt.steps == [0, 1]


@pytest.mark.parametrize(
  'other, named',
  [
    ({'params': {'v': jnp.ones((3, 2))}}, 'params.v: stored nothing'),
    ({'params': {'w': jnp.ones((2, 3))}}, r'params.w: stored float32\[3, 2\]'),
    ({'params': {'w': jnp.ones((3, 2), jnp.int32)}}, r'expected int32\[3, 2\]'),
  ],
)
def test_another_models_checkpoint_is_refused_by_name(tmp_path, other, named):
  save(tmp_path, [None])
  with Checkpoints(tmp_path) as ckpt:
    with pytest.raises(ValueError, match=named):
      ckpt.restore_newest(state(0) | other)


ODD_NAMES = (
  'two words', '{a,b}', "it's", 'dou"ble', 'ünï', 'new\nline', '100%', '#1', 'a:b',
  'a@b;c&d|e!', 'dot.', '-dash', '~x', '$HOME', '.hidden', '(x)', ']', 'a=b,c=d', '12',
  'x' * 200, 'a.orbax-checkpoint-tmp-1',
)  # fmt: skip


def test_folders_of_odd_names_hold_checkpoints(tmp_path):
  for name in ODD_NAMES:
    folder = tmp_path / name / 'run' / 'checkpoints'
    check_folder(folder, '--workdir')
    folder.parent.mkdir(parents=True)
    with Checkpoints(folder) as ckpt:
      ckpt.save(7, state(7))
      ckpt.wait()
      restored, step = ckpt.restore_newest(state(0))
    assert step == 7 and restored['step'] == 7, name


def test_a_save_that_cannot_be_read_back_does_not_count(tmp_path, caplog):
  # Orbax takes the path for a pattern, and leaves out a file that restoring needs.
  with pytest.raises(StorageError, match='step 1 could not be saved'):
    with Checkpoints(tmp_path / 'lr[0.1]') as ckpt:
      ckpt.save(1, state(1))
  assert 'cannot be read back' in caplog.text


def test_older_steps_stay_until_the_newest_is_read_back(tmp_path, monkeypatch):
  save(tmp_path, [0.5, None, None])  # 0 is the best
  monkeypatch.setattr(Checkpoints, '_problem_of_reading', lambda *_: 'unreadable')
  with Checkpoints(tmp_path, known([0.5])) as ckpt:
    ckpt.save(3, state(3))
    ckpt._finish()
    assert ckpt.steps == [0, 1, 2]
    monkeypatch.undo()
    ckpt.save(4, state(4))
    ckpt.wait()
    assert ckpt.steps == [0, 2, 4]


def names_in(folder):
  return sorted(path.name for path in folder.iterdir())


def test_training_goes_on_if_a_step_cannot_be_removed(tmp_path, monkeypatch, caplog):
  def busy(path):
    raise OSError('busy')

  with Checkpoints(tmp_path) as ckpt:
    with monkeypatch.context() as patch:
      patch.setattr(shutil, 'rmtree', busy)
      for step in (1, 2, 3):
        ckpt.save(step, state(step))
      ckpt.wait()
    assert ckpt.steps == [2, 3] and len(names_in(tmp_path)) == 3
  assert 'Step 1 cannot be removed: busy' in caplog.text
  with Checkpoints(tmp_path) as ckpt:
    assert ckpt.steps == [2, 3]
    ckpt.save(4, state(4))
  assert names_in(tmp_path) == ['3', '4']


def test_an_error_without_a_text_is_named(tmp_path, monkeypatch, caplog):
  def fail(folder):
    raise KeyError

  monkeypatch.setattr(checksums, 'read', fail)
  with pytest.raises(StorageError, match='step 1 could not be saved'):
    save(tmp_path / 'run', [None, None])
  assert 'cannot be read back: KeyError' in caplog.text


def test_a_read_only_folder_is_not_changed(tmp_path):
  folder = tmp_path / 'checkpoints'
  save(folder, [None, None])
  (folder / '2.orbax-checkpoint-tmp').mkdir()  # being saved now
  for file in data_files(folder / '1'):
    file.write_bytes(b'')
  stats = lambda: {x: x.stat().st_mtime_ns for x in tmp_path.rglob('*')}
  before = stats()
  with Checkpoints(folder, read_only=True) as ckpt:
    assert ckpt.restore_newest(state(0))[1] == 0
  assert stats() == before
