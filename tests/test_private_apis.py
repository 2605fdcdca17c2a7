"""Private names of jax exist, in one module; a new version may move them."""

import os
import pathlib
import subprocess
import sys

from gfl_jax import private_apis
from scripts.faults.process_group import free_port
from tests.test_layers import imported_modules

ROOT = pathlib.Path(__file__).parents[1]
USE = """
import jax
from gfl_jax import private_apis

assert private_apis.runs_on_cloud_tpu()
jax.distributed.initialize('127.0.0.1:{port}', 1, 0)
client = private_apis.distributed_client()
client.key_value_set('folder/a', '1')
client.key_value_set('folder/a', '2', allow_overwrite=True)
assert client.key_value_dir_get('folder/') == [('folder/a', '2')]
assert client.blocking_key_value_get('folder/a', 1000) == '2'
client.wait_at_barrier('barrier', 1000)
"""


def test_private_names_of_jax_do_what_they_did():
  assert private_apis.distributed_client() is None  # one process has none
  assert not private_apis.runs_on_cloud_tpu()
  environment = os.environ | {'JAX_FORCE_TPU_INIT': '1', 'JAX_PLATFORMS': 'cpu'}
  command = [sys.executable, '-c', USE.format(port=free_port())]
  subprocess.run(command, check=True, env=environment, cwd=ROOT)


def test_no_other_module_imports_private_names():
  for folder in ('gfl_jax', 'scripts', 'configs'):
    for file in (ROOT / folder).rglob('*.py'):
      if file.name != 'private_apis.py':
        private = [name for name in imported_modules(file) if '._src' in name]
        assert not private, file
