import json
import subprocess
import sys

import numpy as np
import pytest

from gfl_jax.export import manifest, params, programs, stablehlo
from tests.export import detectors

CANVAS = (64, 96)
# What a program without this package does; docs/export.md shows the same lines.
ALONE = """
import sys
class Blocked:
  def find_spec(self, name, path=None, target=None):
    if name.split('.')[0] in ('flax', 'gfl_jax', 'orbax', 'tensorflow'):
      raise ImportError(f'{name} is blocked')
sys.meta_path.insert(0, Blocked())

import jax
import numpy as np
from safetensors.numpy import load_file

folder = sys.argv[1]
weights = load_file(f'{folder}/weights.safetensors')
with open(f'{folder}/detect_64x96.stablehlo', 'rb') as file:
  detect = jax.export.deserialize(bytearray(file.read()))
batch = dict(np.load(f'{folder}/batch.npz'))
found = detect.call(weights, batch)
np.savez(f'{folder}/found.npz', **found)
"""


@pytest.fixture(scope='module')
def exported(tmp_path_factory):
  folder, trained = tmp_path_factory.mktemp('hlo'), detectors.trained(canvas=CANVAS)
  stablehlo.write(trained, folder)
  return folder, trained


def test_it_finds_what_the_jitted_model_finds_for_any_batch_size(exported):
  folder, trained = exported
  described = manifest.read(folder)
  program, reference = stablehlo.load(folder, described), programs.jitted(trained)
  for size, canvas in ((3, CANVAS), (2, CANVAS[::-1])):
    batch = detectors.batch(size, canvas=canvas)
    detectors.assert_same(program(batch), reference(batch), atol=1e-4)


def test_jax_alone_runs_it(exported, tmp_path):
  folder, trained = exported
  for path in folder.iterdir():
    (tmp_path / path.name).write_bytes(path.read_bytes())
  batch = detectors.batch(2, canvas=CANVAS)
  np.savez(tmp_path / 'batch.npz', **batch)
  subprocess.run([sys.executable, '-c', ALONE, tmp_path], check=True)
  described = json.loads((tmp_path / manifest.NAME).read_text())
  expected = programs.jitted(trained)(batch)
  with np.load(tmp_path / 'found.npz') as found:
    assert set(found) == set(described['outputs'])
    for name, output in described['outputs'].items():
      assert found[name].dtype == output['dtype']
      np.testing.assert_allclose(found[name], getattr(expected, name), atol=1e-4)


def test_one_file_is_for_all_platforms_and_any_batch(exported):
  import jax

  folder, _ = exported
  described = manifest.read(folder)
  assert [p['canvas'] for p in described.programs] == [[64, 96], [96, 64]]
  for program in described.programs:
    content = bytearray((folder / program['file']).read_bytes())
    assert len(content) < 2**20  # the parameters lie beside
    read = jax.export.deserialize(content)
    assert read.platforms == ('cpu', 'cuda', 'tpu')
    assert str(read.in_avals[-1].shape) == '(batch, 2)'


def test_the_parameters_beside_are_an_export_of_their_own(exported):
  folder, trained = exported
  found = params.load(folder, manifest.read(folder))
  assert found.config.to_json() == trained.config.to_json()


def test_another_canvas_and_a_program_of_no_jax_are_errors(exported, tmp_path):
  folder, trained = exported
  described = manifest.read(folder)
  program = stablehlo.load(folder, described)
  with pytest.raises(ValueError, match=r'canvas .* \(64, 64\).*\(64, 96\), \(96, 64\)'):
    program(detectors.batch(2))
  params.write_weights(trained, tmp_path)
  for entry in described.programs:
    (tmp_path / entry['file']).write_bytes(b'no program')
  with pytest.raises(ValueError, match=r'cannot read .*detect_64x96'):
    stablehlo.load(tmp_path, described)(detectors.batch(2, canvas=CANVAS))
