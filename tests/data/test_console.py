"""What is held back of stderr, and when it is shown after all."""

import os
import subprocess
import sys

import pytest
import tqdm

from gfl_jax.data import console


def test_a_start_that_succeeds_is_silent(capfd):
  with console.suppress_import_noise():
    os.write(2, b'no GPU')
  os.write(2, b'after')
  assert capfd.readouterr().err == 'after'


def test_a_start_that_fails_shows_what_was_held_back(capfd):
  with (
    pytest.raises(ImportError, match='no such library'),
    console.suppress_import_noise(),
  ):
    os.write(2, b'the reason, ')
    raise ImportError('no such library')
  os.write(2, b'after')
  assert capfd.readouterr().err == 'the reason, after'


def test_a_start_that_crashes_shows_where():
  code = (
    'import faulthandler, os\n'
    'from gfl_jax.data import console\n'
    'with console.suppress_import_noise(): pass\n'
    'assert not faulthandler.is_enabled()\n'
    'with console.suppress_import_noise(): os.abort()'
  )
  done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
  assert done.returncode < 0
  assert 'Fatal Python error: Aborted' in done.stderr and 'line 5 in' in done.stderr


def test_a_bar_keeps_to_its_line_though_another_was_left_open(capfd):
  left_open = tqdm.tqdm(total=9)
  items = console.track(range(2), console.bar(2, 'ours', 'item'))
  assert list(items) == [0, 1]
  assert '\x1b[A' not in capfd.readouterr().err
  left_open.close()


def test_a_bar_is_closed_where_its_items_fail():
  progress = console.bar(2, 'ours', 'item')
  with pytest.raises(ZeroDivisionError):
    for _ in console.track((1 / x for x in (1, 0)), progress):
      pass
  assert progress.disable  # what tqdm calls closed


def test_tensorflow_starts_in_silence():
  code = (
    'from gfl_jax.data import pipeline as p\n'
    'with p.console.suppress_import_noise():\n'
    '  p.tf.config.set_visible_devices([], "GPU")\n'
    'assert list(p.tf.data.Dataset.range(2).as_numpy_iterator()) == [0, 1]'
  )
  command = [sys.executable, '-c', code]
  finished = subprocess.run(command, check=True, capture_output=True)
  assert (finished.stdout, finished.stderr) == (b'', b'')
