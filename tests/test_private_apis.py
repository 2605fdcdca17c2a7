"""Private names of jax exist, in one module; a new version may move them."""

import os
import pathlib
import subprocess
import sys

from gfl_jax import private_apis
from scripts.faults.process_group import free_port
from tests.test_layers import imported_modules

ROOT = pathlib.Path(__file__).parents[1]
USE_CLIENT = """
import jax
from gfl_jax.private_apis import distributed_client
jax.distributed.initialize('127.0.0.1:{port}', 1, 0)
client = distributed_client()
client.key_value_set('folder/a', '1')
client.key_value_set('folder/a', '2', allow_overwrite=True)
assert client.key_value_dir_get('folder/') == [('folder/a', '2')]
assert client.blocking_key_value_get('folder/a', 1000) == '2'
client.wait_at_barrier('barrier', 1000)
"""
USE_TPU = """
from gfl_jax.private_apis import runs_on_cloud_tpu
assert runs_on_cloud_tpu()
"""


def run(code, **environment):
  subprocess.run(
    [sys.executable, '-c', code], check=True, env=os.environ | environment, cwd=ROOT
  )


def test_jax_stores_keys_and_values_for_the_processes_of_a_run():
  assert private_apis.distributed_client() is None  # one process has none
  run(USE_CLIENT.format(port=free_port()))


def test_jax_knows_whether_it_runs_on_a_cloud_tpu():
  assert not private_apis.runs_on_cloud_tpu()
  run(USE_TPU, JAX_FORCE_TPU_INIT='1', JAX_PLATFORMS='cpu')


def test_no_other_module_imports_private_names():
  for folder in ('gfl_jax', 'scripts', 'configs'):
    for file in (ROOT / folder).rglob('*.py'):
      if file.name != 'private_apis.py':
        private = [name for name in imported_modules(file) if '._src' in name]
        assert not private, file
