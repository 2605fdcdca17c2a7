"""A file imports only from folders above its own, and TensorFlow stays in data/."""

import ast
import pathlib
import subprocess
import sys

import pytest

PACKAGE = pathlib.Path(__file__).parents[1] / 'gfl_jax'
# A folder imports from those before it; models and data do not know each other.
FOLDERS = (
  *('ops', 'models', 'data', 'evaluation', 'reports', 'weights', 'multihost'),
  *('checkpointing', 'training', 'studies', 'export', 'inference'),
)
# Modules beside the folders that all may import; they import the errors alone.
SHARED = {'config', 'errors', 'files', 'private_apis'}


def imported_modules(file):
  for node in ast.walk(ast.parse(file.read_text())):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f'{file} imports relatively'
      yield node.module
      yield from (f'{node.module}.{alias.name}' for alias in node.names)


@pytest.mark.parametrize('folder', FOLDERS)
def test_a_folder_imports_from_those_before_it(folder):
  before = FOLDERS[: FOLDERS.index(folder) + 1]
  allowed = {*before, *SHARED, '__version__'} - (
    {'models'} if folder == 'data' else set()
  )
  for file in (PACKAGE / folder).rglob('*.py'):
    for module in imported_modules(file):
      parts = module.split('.')
      if parts[0] == 'gfl_jax' and len(parts) > 1:
        assert parts[1] in allowed, f'{file} imports {module}'


def test_shared_modules_import_the_errors_alone():
  for name in SHARED:
    modules = imported_modules(PACKAGE / f'{name}.py')
    ours = [module for module in modules if module.startswith('gfl_jax')]
    assert all(module.startswith('gfl_jax.errors') for module in ours)
    assert not (ours and name == 'errors')


def test_every_folder_has_a_place():
  folders = {file.relative_to(PACKAGE).parts[0] for file in PACKAGE.rglob('*/*.py')}
  assert folders == set(FOLDERS)


def test_nothing_but_reading_tfds_imports_tensorflow():
  modules = [
    '.'.join(file.relative_to(PACKAGE.parent).with_suffix('').parts)
    for folder in FOLDERS
    if folder != 'data'
    for file in (PACKAGE / folder).rglob('*.py')
  ]
  code = (
    f'import importlib, sys\nfor m in {["gfl_jax.data", *modules]}:'
    ' importlib.import_module(m)\n'
    'assert not [m for m in sys.modules if m.startswith("tensorflow")]'
  )
  subprocess.run([sys.executable, '-c', code], check=True)
