"""A file imports only from folders above its own, and TensorFlow stays in data/."""

import ast
import pathlib
import subprocess
import sys

import pytest

PACKAGE = pathlib.Path(__file__).parents[1] / 'gfl_jax'
# From the bottom of the house to its top; models and data do not know each other.
# Modules beside the folders that all may use; they use the errors alone.
GROUND = {'choices', 'errors', 'files'}
BELOW = {
  'ops': set(),
  'models': {'ops'},
  'data': set(),
  'evaluation': {'ops', 'models'},
  'reports': {'ops', 'models', 'evaluation'},
  'deploy': {'ops', 'models', 'evaluation'},
  'training': {'ops', 'models', 'data', 'evaluation', 'reports', 'deploy'},
  'inference': {'ops', 'models', 'data', 'evaluation', 'deploy', 'training'},
}


def imported_modules(file):
  for node in ast.walk(ast.parse(file.read_text())):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f'{file} imports relatively'
      yield node.module
      yield from (f'{node.module}.{alias.name}' for alias in node.names)


@pytest.mark.parametrize('folder', BELOW)
def test_imports_point_downwards(folder):
  allowed = BELOW[folder] | {folder, '__version__'} | GROUND
  for file in (PACKAGE / folder).glob('*.py'):
    for module in imported_modules(file):
      parts = module.split('.')
      if parts[0] == 'gfl_jax' and len(parts) > 1:
        assert parts[1] in allowed, f'{file} imports {module}'


def test_the_ground_imports_the_errors_alone():
  for name in GROUND:
    modules = imported_modules(PACKAGE / f'{name}.py')
    ours = [module for module in modules if module.startswith('gfl_jax')]
    assert all(module.startswith('gfl_jax.errors') for module in ours)
    assert not (ours and name == 'errors')


def test_every_folder_has_a_place():
  folders = {file.parent.name for file in PACKAGE.glob('*/*.py')}
  assert folders == set(BELOW)


def test_nothing_but_reading_tfds_imports_tensorflow():
  modules = [
    f'gfl_jax.{folder}.{file.stem}'
    for folder in BELOW
    if folder != 'data'
    for file in (PACKAGE / folder).glob('*.py')
  ]
  code = (
    f'import importlib, sys\nfor m in {["gfl_jax.data", *modules]}:'
    ' importlib.import_module(m)\n'
    'assert not [m for m in sys.modules if m.startswith("tensorflow")]'
  )
  subprocess.run([sys.executable, '-c', code], check=True)
