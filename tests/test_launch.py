"""What scripts print before they start: help, errors of flags, lines of libraries."""

import bdb
import errno
import logging
import os
import pathlib
import subprocess
import sys

import jax
import pytest

from gfl_jax import launch

ROOT = pathlib.Path(__file__).parents[1]
LOUD = """
from absl import logging
from gfl_jax import launch

def main(argv):
  logging.info('a note')
  logging.warning('a warning')

launch.run(main)
"""


def said(*command, cwd=ROOT, **environment):
  """Exit status, and all that a script prints."""
  done = subprocess.run(
    [sys.executable, *map(str, command)],
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
    cwd=cwd,
    env=os.environ | environment,
  )
  return done.returncode, done.stdout


COMMANDS = [f'scripts/{file.name}' for file in sorted(ROOT.glob('scripts/*.py'))]
COMMANDS += ['-m scripts.faults.inject', '-m scripts.benchmarks.coco_scale']


@pytest.mark.parametrize('command', COMMANDS)
def test_help_says_what_a_command_does_and_shows_an_example(command):
  _, text = said(*command.split(), '--help')
  what = text.splitlines()[0]
  assert len(what) > 20 and what.endswith(('.', ':')) and 'Traceback' not in text
  assert f'\n  python {command}' in text
  if command in ('scripts/train.py', 'scripts/evaluate.py'):
    for flag in ('--coordinator', '--num_processes', '--process_id'):
      assert flag in text


@pytest.mark.parametrize('more', [[], ['--config.seed=3']])
def test_a_config_that_does_not_exist_is_named(more):
  command = ['scripts/train.py', '--config=configs/nope.py', '--workdir=none', *more]
  status, text = said(*command)
  assert status == 1
  assert text.startswith('\nerror: --config=configs/nope.py does not exist\n(GFL')
  assert len(text.splitlines()) == 3


@pytest.mark.parametrize(
  'code, reason',
  [
    ("open('/no/such file')", "No such file or directory: '/no/such file'"),
    ('def get_config(): return 1 / 0', 'ZeroDivisionError: division by zero'),
    ('x = 1', 'no function get_config'),
    ('import os\ndef get_config(): return os.no_such_thing', 'in get_config'),
    ('def get_config(): return {}', 'returns a dict'),
  ],
)
def test_a_config_that_cannot_be_loaded_shows_why(tmp_path, code, reason):
  file = tmp_path / 'config.py'
  file.write_text(code)
  status, text = said('scripts/train.py', f'--config={file}', '--workdir=none')
  assert status == 1
  assert reason in text and str(file) in text and 'does not exist' not in text


def test_of_libraries_warnings_alone_are_shown_unless_asked_for_more(tmp_path):
  script = tmp_path / 'loud.py'
  script.write_text(LOUD)
  status, text = said(script)
  assert status == 0 and 'a warning' in text and 'a note' not in text
  _, text = said(script, '--verbosity=0')
  assert 'a warning' in text and 'a note' in text


NEW_LOSS = """
import sys
from gfl_jax import errors, launch

def new_loss():
  raise errors.UserError('beta=9') if 'user' in sys.argv else ValueError('beta=9')

def main(argv):
  import gfl_jax.reports.plots
  print('options', sorted(sys._xoptions))
  new_loss()

launch.run(main)
"""


def test_python_keeps_its_options_and_an_error_of_new_code_its_traceback(tmp_path):
  script = tmp_path / 'new_loss.py'
  script.write_text(NEW_LOSS)
  environment = {'MPLBACKEND': 'inline', 'PYTHONPATH': str(ROOT)}
  command = ['-X', 'utf8', '-m', 'cProfile', script]
  status, text = said(*command, **environment)
  assert status == 1
  assert "options ['utf8']" in text and 'function calls' in text  # it was profiled
  assert 'in new_loss' in text and 'ValueError: beta=9' in text
  status, text = said(script, 'user', **environment)
  assert status == 1 and 'error: beta=9' in text and 'Traceback' not in text


def test_a_closed_stderr_ends_nothing(tmp_path):
  script = tmp_path / 'loud.py'
  script.write_text(LOUD.replace("logging.info('a note')", "print('all is well')"))
  command = f'{sys.executable} {script} 2>&-'
  environment = os.environ | {'PYTHONPATH': str(ROOT)}
  done = subprocess.run(
    ['sh', '-c', command], stdout=subprocess.PIPE, text=True, env=environment
  )
  assert (done.returncode, done.stdout) == (0, 'all is well\n')


class Broken:
  encoding = 'utf-8'

  def __init__(self, number):
    self.number = number

  def write(self, text=''):
    raise OSError(self.number, os.strerror(self.number))

  flush = write


@pytest.mark.parametrize('number', [errno.EIO, errno.EPIPE, errno.ENOSPC])
def test_a_closed_terminal_ends_nothing(number):
  stream = launch._TolerantStream(Broken(number), errno.errorcode)
  assert stream.write('a line') == 6 and stream.encoding == 'utf-8'
  stream.flush()


def test_results_may_lose_their_reader_but_not_their_disk():
  ignored = (errno.EIO, errno.EPIPE)
  for number in ignored:
    stream = launch._TolerantStream(Broken(number), ignored)
    assert stream.write('AP 0.4') == 6
    stream.flush()
  stream = launch._TolerantStream(Broken(errno.ENOSPC), ignored)
  with pytest.raises(OSError, match='No space'):
    stream.write('AP 0.4')


@pytest.mark.parametrize('watcher', ['IPython', 'a tracer', 'nobody'])
def test_a_second_start_would_lose_a_notebook_or_a_debugger(monkeypatch, watcher):
  starts = []
  monkeypatch.setattr(os, 'execv', lambda *arguments: starts.append(arguments))
  monkeypatch.setattr(os, 'environ', {'PATH': '', 'XLA_FLAGS': '--xla_given=1'})
  monkeypatch.setattr(sys, 'stdout', sys.stdout)
  monkeypatch.setattr(sys, 'stderr', sys.stderr)
  monkeypatch.setattr(sys, 'orig_argv', ['python', '-X', 'dev', 'scripts/train.py'])
  logger = logging.getLogger('gfl_jax')
  monkeypatch.setattr(logger, 'handlers', [])
  monkeypatch.setattr(logger, 'propagate', True)
  monkeypatch.setattr(logger, 'level', logger.level)
  monkeypatch.setattr(launch, '_is_traced', lambda: watcher == 'a tracer')
  if watcher == 'IPython':
    monkeypatch.setitem(sys.modules, 'IPython', os)
  else:
    monkeypatch.delitem(sys.modules, 'IPython', raising=False)
  launch.prepare_process()
  command = [sys.executable, '-X', 'dev', 'scripts/train.py']
  assert starts == ([(sys.executable, command)] if watcher == 'nobody' else [])
  assert os.environ['XLA_FLAGS'].endswith(' --xla_given=1')


def test_a_debugger_that_goes_on_to_the_end_is_seen():
  def after_continue():
    sys.settrace(None)
    return launch._is_traced()

  assert not launch._is_traced()
  assert bdb.Bdb().runcall(after_continue)


def test_flags_of_the_compiler_are_those_it_knows(monkeypatch):
  flags = launch._xla_flags('--xla_given=1').split()
  assert [flag.partition('=')[0] for flag in flags] == [
    *(f'--{name}' for name in launch._XLA_FLAGS),
    '--xla_given',
  ]
  # The second is a field of XLA's options without a flag: given, it ends a process.
  for name in ('xla_cpu_no_such_flag_at_all', 'xla_allow_scalar_index_dynamic_ops'):
    monkeypatch.setattr(launch, '_XLA_FLAGS', {name: '1'})
    assert launch._xla_flags('') == ''


@pytest.mark.parametrize(
  'argument, expanded',
  [
    ('--workdir=~/runs/a', '--workdir=HOME/runs/a'),
    ('--images=~/a,~/b/~c', '--images=HOME/a,HOME/b/~c'),
    ('--set=data.path=~', '--set=data.path=HOME'),
    ('~/photos', 'HOME/photos'),
    ('--rows=a~b', '--rows=a~b'),
  ],
)
def test_the_home_folder_is_written_as_in_a_shell(monkeypatch, argument, expanded):
  monkeypatch.setenv('HOME', '/home/me')
  assert launch._expand_home(argument) == expanded.replace('HOME', '/home/me')


def test_an_empty_folder_is_refused():
  status, text = said('scripts/train.py', '--config=configs/bccd.py', '--workdir=')
  assert status == 1 and '--workdir' in text and 'empty' in text


def test_scripts_run_in_a_checkout_that_is_not_installed(tmp_path):
  line = 'sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))\n'
  for folder in ('scripts', 'gfl_jax', 'configs', 'docs'):
    for file in ROOT.glob(f'{folder}/**/*.py'):
      is_command = str(file.relative_to(ROOT)) in (*COMMANDS, 'docs/figures.py')
      text = file.read_text()
      assert (text.count(line), text.count('sys.path')) == (is_command,) * 2, file
  # -S leaves out what makes an editable install importable.
  packages = str(pathlib.Path(jax.__file__).parents[1])
  command = ['-S', ROOT / 'scripts/train.py', '--help']
  _, text = said(*command, cwd=tmp_path, PYTHONPATH=packages)
  assert '--workdir' in text and 'Traceback' not in text


FAKE_TRAINING = """#!/bin/sh
echo start >> starts
case $(wc -l < starts) in {steps} esac
exit {status}
"""


@pytest.mark.parametrize(
  'status, steps, starts',
  [
    (137, '2) mkdir -p run/checkpoints/50 ;;', 5),
    (75, '3) exit 0 ;;', 3),
    (1, '9) ;;', 1),
  ],
)
def test_training_is_started_again_while_it_gets_on(tmp_path, status, steps, starts):
  for name, text in (
    ('python', FAKE_TRAINING.format(status=status, steps=steps)),
    ('sleep', '#!/bin/sh\n'),
  ):
    (tmp_path / name).write_text(text)
    (tmp_path / name).chmod(0o755)
  path = f'{tmp_path}:{os.environ["PATH"]}'
  done = subprocess.run(
    ['sh', ROOT / 'scripts/keep_training.sh', '--config=c.py', '--workdir', 'run'],
    cwd=tmp_path,  # relative folders are those of the user
    env=os.environ | {'PYTHON': str(tmp_path / 'python'), 'PATH': path},
    stderr=subprocess.PIPE,
    text=True,
  )
  assert len((tmp_path / 'starts').read_text().split()) == starts
  assert done.returncode == (0 if 'exit 0' in steps else status)
  if starts == 5:
    assert 'newest is 50' in done.stderr


@pytest.mark.parametrize(
  'flag, words',
  [
    ('--config.modle.num_classes=1', "'modle': did you mean 'model'?"),
    ('--config.model.num_clases=1', "'num_clases': did you mean 'num_classes'?"),
    ('--config.seed.x=1', "'seed.x'"),
    ('--config.model.x=1', "no field 'x'"),
  ],
)
def test_a_field_that_does_not_exist_is_one_line(flag, words):
  status, text = said(
    'scripts/train.py', '--config=configs/bccd.py', '--workdir=x', flag
  )
  assert status == 1
  assert 'Traceback' not in text and words in text
