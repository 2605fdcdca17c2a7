"""What `pip install .` puts into an environment, and what its metadata say."""

import glob
import importlib.metadata
import pathlib
import shutil
import subprocess
import sys
import venv

import pytest
from packaging.requirements import Requirement

import gfl_jax
from gfl_jax.training import environment

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture(scope='module')
def installed(tmp_path_factory) -> importlib.metadata.Distribution:
  """The package, built from a copy and installed alone in a new environment."""
  folder = tmp_path_factory.mktemp('package')
  source, environment = folder / 'source', folder / 'environment'
  for name in ('gfl_jax', 'configs', 'scripts', 'tests/data'):
    skip = shutil.ignore_patterns('__pycache__')
    shutil.copytree(ROOT / name, source / name, ignore=skip)
  for name in ('pyproject.toml', 'requirements.txt', 'README.md', 'LICENSE'):
    shutil.copy(ROOT / name, source)
  venv.create(environment, with_pip=False)

  def pip(*arguments):
    command = [sys.executable, '-m', 'pip', '--quiet', *arguments]
    subprocess.run(command, check=True)

  options = ['--no-deps', '--no-index']
  pip('wheel', *options, '--no-build-isolation', f'--wheel-dir={folder}', source)
  (wheel,) = folder.glob('*.whl')
  pip(f'--python={environment}', 'install', *options, '--no-compile', wheel)
  (site_packages,) = environment.glob('lib/python*/site-packages')
  (found,) = importlib.metadata.distributions(path=[str(site_packages)])
  return found


def test_all_files_of_the_package_and_nothing_else_are_installed(installed):
  files = {file.as_posix() for file in installed.files}
  about = f'gfl_jax-{gfl_jax.__version__}.dist-info'
  assert {file.split('/')[0] for file in files} == {'gfl_jax', about}
  ours = glob.glob('gfl_jax/**/*.*', root_dir=ROOT, recursive=True)
  assert {file for file in files if file.startswith('gfl_jax/')} == {
    file for file in ours if '__pycache__' not in file
  }


def test_the_metadata_are_complete(installed):
  about = installed.metadata
  assert about['Name'] == 'gfl-jax' and about['Version'] == gfl_jax.__version__
  assert about['Requires-Python'] == '>=3.11' and about['Summary']
  assert about['License-Expression'] == 'Apache-2.0' and about['License-File']
  assert about['Author'] and about['Classifier'] and about['Project-URL']
  lines = (ROOT / 'requirements.txt').read_text().splitlines()
  listed = {Requirement(text) for line in lines if (text := line.split('#')[0])}
  needed = {Requirement(text) for text in installed.requires}
  assert listed and listed == {r for r in needed if 'extra' not in str(r.marker)}


def test_a_repository_that_holds_the_installed_package_is_not_its_source(
  tmp_path, monkeypatch
):
  author = ['-c', 'user.name=somebody', '-c', 'user.email=somebody@example.com']
  commit = [*author, 'commit', '--quiet', '--allow-empty', '--message=first']
  for command in (['init', '--quiet'], commit):
    subprocess.run(['git', *command], cwd=tmp_path, check=True)
  monkeypatch.setattr(environment, '__file__', str(tmp_path / 'environment.py'))
  assert 'unknown' in environment.git_revision()
