"""The worked example of CONTRIBUTING.md does what is said of it."""

import pathlib
import re
import shutil
import subprocess
import sys

from tests import tiny
from tests.data import sets

ROOT = pathlib.Path(__file__).parents[1]

# Trains the example's row on a tiny network, as scripts/ablate.py would.
RUN_THE_ROW = """
import sys
import gfl_jax
from configs.ablations import class_loss
from gfl_jax.training import loop
from tests import tiny

data_file, folder = sys.argv[1:]
assert gfl_jax.__file__.startswith(folder), gfl_jax.__file__
config = tiny.config()
config.data.path, config.model.num_classes, config.epochs = data_file, 2, 1.0
config.log_every_steps = 1
class_loss.ROWS['matchability'].change(config)
assert config.class_loss.kind == 'matchability' and config.box.kind == 'dirac'
loop.train(config, folder + '/run')
"""


def test_the_worked_example_applies_and_trains(tmp_path):
  text = (ROOT / 'CONTRIBUTING.md').read_text()
  (diff,) = re.findall('```diff\n(.*?)```', text, re.DOTALL)
  changed = re.findall(r'^\+\+\+ b/(.*)$', diff, re.MULTILINE)
  in_package = [name for name in changed if name.startswith('gfl_jax/')]
  assert len(in_package) <= 2 and len(changed) - len(in_package) == 1

  for folder in ('gfl_jax', 'configs', 'tests'):
    skip = shutil.ignore_patterns('__pycache__', 'golden')
    shutil.copytree(ROOT / folder, tmp_path / folder, ignore=skip)
  subprocess.run(
    ['git', 'apply', '--unidiff-zero', '-'],
    cwd=tmp_path,
    input=diff,
    text=True,
    check=True,
  )
  boxes = [[(8 + i, 8, 40 + i, 40)] for i in range(8)]
  data_file = tmp_path / 'tiny.npz'
  sets.memory_set(sets.annotations([(64, 64)] * 8, boxes)).save(data_file)
  assert tiny.config().batch_size == 8
  finished = subprocess.run(
    [sys.executable, '-c', RUN_THE_ROW, str(data_file), str(tmp_path)],
    cwd=tmp_path,
    env={'JAX_PLATFORMS': 'cpu', 'PATH': '/usr/bin:/bin', 'PYTHONPATH': str(tmp_path)},
    capture_output=True,
    text=True,
    check=False,
  )
  assert finished.returncode == 0, finished.stderr
  assert '"loss_class"' in (tmp_path / 'run' / 'metrics.jsonl').read_text()
