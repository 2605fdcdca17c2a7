import json

import numpy as np
import pytest
import safetensors
from safetensors.numpy import load_file, save_file

from gfl_jax.deploy import manifest, params
from tests.deploy import detectors


@pytest.fixture(scope='module')
def exported(tmp_path_factory):
  folder, trained = tmp_path_factory.mktemp('params'), detectors.trained()
  params.write(trained, folder)
  return folder, trained


def flat(tree, name=''):
  if not isinstance(tree, dict):
    return {name: tree}
  return {
    k: v
    for key, below in tree.items()
    for k, v in flat(below, f'{name}/{key}' if name else key).items()
  }


def test_it_comes_back_bit_for_bit(exported):
  folder, trained = exported
  loaded = params.load(folder, manifest.read(folder))
  expected, actual = flat(trained.variables), flat(loaded.variables)
  assert expected.keys() == actual.keys()
  for name, leaf in expected.items():
    assert leaf.dtype == actual[name].dtype and leaf.shape == actual[name].shape
    assert leaf.tobytes() == actual[name].tobytes()
  assert loaded.config.to_json() == trained.config.to_json()
  assert loaded.class_names == trained.class_names
  assert loaded.category_ids == trained.category_ids
  assert loaded.origin == trained.origin


def test_the_file_alone_says_what_it_is(exported, tmp_path):
  folder, trained = exported
  moved = tmp_path / 'mine.safetensors'
  moved.write_bytes((folder / params.FILE).read_bytes())
  assert params.read(moved).class_names == trained.class_names


def test_safetensors_alone_reads_it(exported):
  folder, trained = exported
  arrays = load_file(folder / params.FILE)
  name = 'params/head/class_output/bias'
  np.testing.assert_array_equal(
    arrays[name], trained.variables['params']['head']['class_output']['bias']
  )
  with safetensors.safe_open(folder / params.FILE, framework='numpy') as file:
    metadata = file.metadata()
  assert json.loads(metadata['class_names']) == ['cell', 'plättchen', 'c']
  assert json.loads(metadata['config'])['model']['num_classes'] == 3


def test_torch_reads_it(exported):
  torch = pytest.importorskip('torch')
  from safetensors.torch import load_file as load_in_torch

  folder, trained = exported
  for name, tensor in load_in_torch(folder / params.FILE).items():
    assert tensor.dtype == torch.float32
    np.testing.assert_array_equal(tensor.numpy(), flat(trained.variables)[name])


def test_transposed_and_scalar_arrays_keep_their_values(tmp_path):
  trained = detectors.trained()
  trained.variables['params']['head']['extra'] = {
    'turned': np.arange(6, dtype=np.float32).reshape(2, 3).T,
    'scalar': np.float32(3),
  }
  params.write(trained, tmp_path)
  found = params.load(tmp_path, manifest.read(tmp_path)).variables
  extra = found['params']['head']['extra']
  np.testing.assert_array_equal(extra['turned'], [[0, 3], [1, 4], [2, 5]])
  assert extra['scalar'].shape == () and extra['scalar'] == 3


def test_another_file_a_cut_one_and_none_are_errors(exported, tmp_path):
  folder, _ = exported
  path = tmp_path / 'x.safetensors'
  save_file({'a': np.zeros(2)}, path)
  with pytest.raises(ValueError, match='not of an export of gfl_jax'):
    params.read(path)
  save_file({'a': np.zeros(2)}, path, metadata={'format': 'pt'})
  with pytest.raises(ValueError, match='not of an export of gfl_jax'):
    params.read(path)
  path.write_bytes((folder / params.FILE).read_bytes()[:-10])
  with pytest.raises(ValueError, match='no whole safetensors file'):
    params.read(path)
  with pytest.raises(FileNotFoundError, match='none.safetensors does not exist'):
    params.read(tmp_path / 'none.safetensors')


def test_a_newer_version_says_to_update(exported, tmp_path, monkeypatch):
  _, trained = exported
  monkeypatch.setattr(manifest, 'VERSION', 9)
  params.write(trained, tmp_path)
  monkeypatch.undo()
  with pytest.raises(ValueError, match='format version 9.*update gfl_jax'):
    params.read(tmp_path / params.FILE)
