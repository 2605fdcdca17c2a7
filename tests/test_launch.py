"""What scripts say before they begin: help, errors of flags, lines of libraries."""

import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
LOUD = """
from absl import logging
from gfl_jax import launch

def main(argv):
  logging.info('a note')
  logging.warning('a warning')

launch.run(main)
"""


def said(*command):
  """Exit status, and all that a script prints."""
  done = subprocess.run(
    [sys.executable, *map(str, command)],
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
    cwd=ROOT,
  )
  return done.returncode, done.stdout


@pytest.mark.parametrize('name', ['train', 'evaluate'])
def test_help_shows_how_processes_are_joined(name):
  _, text = said(f'scripts/{name}.py', '--help')
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
