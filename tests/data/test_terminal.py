"""What is held back of stderr, and when it is shown after all."""

import os
import subprocess
import sys

import pytest
import tqdm

from gfl_jax.data import terminal


def test_a_start_that_succeeds_is_silent(capfd):
  with terminal.hold_back_stderr():
    os.write(2, b'no GPU')
  os.write(2, b'after')
  assert capfd.readouterr().err == 'after'


def test_a_start_that_fails_shows_what_was_held_back(capfd):
  with pytest.raises(ImportError, match='no such library'), terminal.hold_back_stderr():
    os.write(2, b'the reason, ')
    raise ImportError('no such library')
  os.write(2, b'after')
  assert capfd.readouterr().err == 'the reason, after'


def test_a_start_that_crashes_shows_where():
  code = (
    'import faulthandler, os\n'
    'from gfl_jax.data import terminal\n'
    'with terminal.hold_back_stderr(): pass\n'
    'assert not faulthandler.is_enabled()\n'
    'with terminal.hold_back_stderr(): os.abort()'
  )
  done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
  assert done.returncode < 0
  assert 'Fatal Python error: Aborted' in done.stderr and 'line 5 in' in done.stderr


def test_a_bar_keeps_to_its_line_though_another_was_left_open(capfd):
  left_open = tqdm.tqdm(total=9)
  assert list(terminal.progress_bar(2, 'ours', 'item', range(2))) == [0, 1]
  assert '\x1b[A' not in capfd.readouterr().err
  left_open.close()


def test_a_bar_is_closed_where_its_items_fail():
  bar = terminal.progress_bar(2, 'ours', 'item', (1 / x for x in (1, 0)))
  with pytest.raises(ZeroDivisionError):
    list(bar)
  assert bar.disable  # as tqdm marks a closed bar


def test_tensorflow_starts_in_silence():
  code = (
    'from gfl_jax.data import pipeline as p\n'
    'with p.terminal.hold_back_stderr():\n'
    '  p.tf.config.set_visible_devices([], "GPU")\n'
    'assert list(p.tf.data.Dataset.range(2).as_numpy_iterator()) == [0, 1]'
  )
  command = [sys.executable, '-c', code]
  finished = subprocess.run(command, check=True, capture_output=True)
  assert (finished.stdout, finished.stderr) == (b'', b'')
