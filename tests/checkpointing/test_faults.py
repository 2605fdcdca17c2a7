"""Fault injection: killed processes, full disks, flipped bits."""

import contextlib
import errno
import gc
import json
import os
import pathlib
import resource
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gfl_jax.checkpointing import checksums, save_errors
from gfl_jax.checkpointing.manager import Checkpoints
from tests.checkpointing import endless_saver

# Of several leaves that cannot be read or written, orbax asks for one error alone.
pytestmark = pytest.mark.filterwarnings(
  'ignore::pytest.PytestUnraisableExceptionWarning'
)
SIZE = 1_000_000


@pytest.fixture(scope='module', autouse=True)
def _no_errors_left_over():
  yield
  gc.collect()  # while they are ignored


def big_state(step):
  """A megabyte that no compression makes small."""
  noise = np.random.default_rng(step).normal(size=SIZE // 8)
  return {'params': {'w': jnp.asarray(noise, jnp.float32)}, 'step': jnp.int32(step)}


@contextlib.contextmanager
def no_space(limit=100_000):
  """No file of this process grows beyond `limit` bytes, as if the disk were full."""
  before = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def wait_until(condition, seconds=120):
  limit = time.monotonic() + seconds
  while not condition():
    assert time.monotonic() < limit, 'time is up'
    time.sleep(0.001)


def test_stored_steps_survive_a_kill_during_a_save(tmp_path):
  stored = lambda: sorted(int(x.name) for x in tmp_path.iterdir() if x.name.isdigit())
  being_saved = lambda: list(tmp_path.glob('*tmp*'))
  newest = 0
  for _ in range(2):
    with subprocess.Popen(
      [sys.executable, '-m', 'tests.checkpointing.endless_saver', tmp_path, str(SIZE)],
      cwd=pathlib.Path(__file__).parents[2],
      env=os.environ | {'JAX_PLATFORMS': 'cpu'},
    ) as process:
      try:
        wait_until(lambda newest=newest: (stored() or [0])[-1] > newest + 1)
        wait_until(being_saved)
      finally:
        process.kill()
    assert being_saved()
    newest = stored()[-1]
    target = jax.tree.map(jnp.asarray, endless_saver.state(0, SIZE))
    with Checkpoints(tmp_path) as checkpoints:
      state, step = checkpoints.restore_newest(target) or (None, None)
      assert step == newest
      expected = endless_saver.state(step, SIZE)
      jax.tree.map(np.testing.assert_array_equal, state, expected)
      checkpoints.save(newest + 1, target)
    newest += 1
    assert not being_saved() and stored()[-1] == newest
    shutil.rmtree(tmp_path / str(newest))
    newest -= 1


def test_a_full_disk_fails_only_the_save(tmp_path, caplog):
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(1, big_state(1))
    checkpoints.aps[1] = 0.5
    checkpoints.wait()
    with no_space():
      checkpoints.save(2, big_state(2))
      checkpoints.aps[2] = 0.9
      wait_until(
        lambda: checkpoints.warn_if_failed() or 'Step 2 could not' in caplog.text
      )
    assert '(File too large); the newest stored step is 1' in caplog.text
    assert checkpoints.steps == [1] and checkpoints.best_step == 1
    restored, step = checkpoints.restore_newest(big_state(0)) or (None, None)
    assert step == 1
    jax.tree.map(np.testing.assert_array_equal, restored, big_state(1))
    checkpoints.save(3, big_state(3))
    checkpoints.wait()
    assert 'failed before: steps [2]; the newest stored step is 3' in caplog.text
    assert 'Traceback' not in caplog.text
    assert checkpoints.steps == [1, 3]
  assert sorted(x.name for x in tmp_path.iterdir()) == ['1', '3']


def test_a_save_whose_folder_cannot_be_made_leaves_nothing_behind(
  tmp_path, monkeypatch, caplog
):
  def full(path, *arguments, **more):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(1, big_state(1))
    checkpoints.wait()
    with monkeypatch.context() as patch:
      patch.setattr(os, 'mkdir', full)
      checkpoints.save(2, big_state(2))
      wait_until(
        lambda: checkpoints.warn_if_failed() or 'Step 2 could not' in caplog.text
      )
    assert '(No space left on device); the newest stored step is 1' in caplog.text
    checkpoints.save(3, big_state(3))
    checkpoints.wait()
    assert checkpoints.steps == [1, 3]
  # The process could not end before such a thread of orbax.
  wait_until(
    lambda: not any('Signal' in type(t).__name__ for t in threading.enumerate())
  )


def test_the_reason_of_a_failed_save_is_the_error_of_the_system():
  no_space = OSError(errno.ENOSPC, 'No space left on device', '/runs')
  assert save_errors.reason(no_space) == 'No space left on device'
  for text in ('File too large', "[spec='{true}'])", ''):
    error = ValueError(f"writing: file 4: {text} [os_error_code='27'] [source='a:1']")
    assert save_errors.reason(error) == 'File too large'
  assert save_errors.reason(ValueError('one\ntwo')) == 'one'


def test_the_last_save_is_tried_once_more(tmp_path):
  with Checkpoints(tmp_path) as checkpoints:
    with no_space():
      checkpoints.save(1, big_state(1))
      wait_until(lambda: checkpoints.warn_if_failed() or checkpoints._refused)
    checkpoints.wait()
    assert checkpoints.steps == [1]


def test_a_run_whose_last_save_fails_ends_with_an_error(tmp_path):
  with pytest.raises(OSError, match='step 2 could not be saved; the newest .* is 1'):
    with Checkpoints(tmp_path) as checkpoints:
      checkpoints.save(1, big_state(1))
      checkpoints.wait()
      with no_space():
        checkpoints.save(2, big_state(2))
        checkpoints.wait()
  with Checkpoints(tmp_path) as checkpoints:
    assert checkpoints.steps == [1]


def test_an_error_of_the_code_is_raised(tmp_path, monkeypatch):
  def broken(arrays):
    raise TypeError('a bug')

  with Checkpoints(tmp_path) as checkpoints:
    with monkeypatch.context() as patch:
      patch.setattr(checksums, 'crc32', broken)
      checkpoints.save(1, big_state(1))
      with pytest.raises(TypeError, match='a bug'):
        checkpoints.wait()


def test_the_checksums_are_those_of_the_state_at_the_call(tmp_path, monkeypatch):
  true = checksums.crc32

  def late(arrays):
    time.sleep(0.5)
    return true(arrays)

  change = jax.jit(lambda x: jax.tree.map(lambda y: y * 0, x), donate_argnums=0)
  state = big_state(1)
  with Checkpoints(tmp_path) as checkpoints:
    with monkeypatch.context() as patch:
      patch.setattr(checksums, 'crc32', late)
      checkpoints.save(1, state)
      jax.block_until_ready(change(state))
      checkpoints.wait()
    restored = checkpoints.restore(big_state(0), 1)
  jax.tree.map(np.testing.assert_array_equal, restored, big_state(1))


def small_state(step):
  return {
    'params': {'w': jnp.arange(600.0).reshape(20, 30) + step, 'b': jnp.ones(7)},
    'step': jnp.int32(step),
  }


@pytest.fixture(scope='module')
def two_steps(tmp_path_factory):
  folder = tmp_path_factory.mktemp('two_steps')
  with Checkpoints(folder) as checkpoints:
    checkpoints.save(1, small_state(1))
    checkpoints.save(2, small_state(2))
  return folder


def test_damage_is_found_or_harmless(two_steps, tmp_path):
  seen = Counter()

  @settings(max_examples=40, deadline=None, derandomize=True)
  @given(data=st.data())
  def damage(data):
    copy = tmp_path / 'run' / 'checkpoints'
    shutil.rmtree(copy.parent, ignore_errors=True)
    shutil.copytree(two_steps, copy)
    # The names of the arrays' files differ from run to run, their order by size less.
    files = [x for x in (copy / '2').rglob('*') if x.is_file()]
    files.sort(key=lambda x: (str(x.relative_to(copy / '2').parent), x.stat().st_size))
    file = data.draw(st.sampled_from(range(len(files))), 'file')
    kind = data.draw(st.sampled_from(['bit', 'cut', 'deleted']), 'kind')
    content = bytearray(files[file].read_bytes())
    if kind == 'deleted':
      files[file].unlink()
    elif content:
      place = data.draw(st.integers(0, 8 * len(content) - 1), 'bit')
      if kind == 'bit':
        content[place // 8] ^= 1 << place % 8
      else:
        content = content[: place // 8]
      files[file].write_bytes(content)
    with Checkpoints(copy, {1: 0.25, 2: 0.5}) as checkpoints:
      restored, step = checkpoints.restore_newest(small_state(0)) or (None, 0)
      assert checkpoints.steps == list(range(1, step + 1))
      assert checkpoints.best_step == step
    jax.tree.map(np.testing.assert_array_equal, restored, small_state(step))
    seen[kind, 'found' if step == 1 else 'harmless'] += 1

  damage()
  assert seen['bit', 'found'] and seen['bit', 'harmless'], seen


def test_a_checkpoint_with_an_ap_among_its_checksums_is_restored(two_steps, tmp_path):
  shutil.copytree(two_steps, tmp_path / 'checkpoints')
  file = tmp_path / 'checkpoints' / '2' / 'checksums' / 'metadata'
  old = json.loads(file.read_text()) | {'AP': {'value': 0.5, 'crc32': 7}}
  file.write_text(json.dumps(old))
  with Checkpoints(tmp_path / 'checkpoints') as checkpoints:
    _, step = checkpoints.restore_newest(small_state(0)) or (None, None)
  assert step == 2


def test_a_leaf_lost_from_the_newest_step_only_is_damage(two_steps, tmp_path):
  shutil.copytree(two_steps, tmp_path / 'checkpoints')
  file = tmp_path / 'checkpoints' / '2' / 'state' / '_METADATA'
  file.write_text(file.read_text().replace('"w"', '"x"').replace("'w'", "'x'"))
  with Checkpoints(tmp_path / 'checkpoints') as checkpoints:
    _, step = checkpoints.restore_newest(small_state(0)) or (None, None)
  assert step == 1
