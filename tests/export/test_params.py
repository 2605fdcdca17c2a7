import dataclasses
import json

import ml_collections
import numpy as np
import pytest
import safetensors
from safetensors.numpy import load_file, save_file

from gfl_jax.export import manifest, params
from tests.export import detectors


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


def test_transposed_arrays_keep_their_values(tmp_path):
  trained = detectors.trained()
  head = trained.variables['params']['head']['class_output']
  kernel = head['kernel'].copy()
  head['kernel'] = np.asfortranarray(kernel)
  params.write(trained, tmp_path)
  found = params.load(tmp_path, manifest.read(tmp_path)).variables
  np.testing.assert_array_equal(
    found['params']['head']['class_output']['kernel'], kernel
  )


def test_others_may_read_it(exported, tmp_path):
  (tmp_path / 'plain').write_bytes(b'')
  folder, _ = exported
  assert (folder / params.FILE).stat().st_mode == (tmp_path / 'plain').stat().st_mode


def test_a_changed_byte_of_a_lone_file_is_found(exported, tmp_path):
  folder, _ = exported
  content = bytearray((folder / params.FILE).read_bytes())
  path = tmp_path / 'x.safetensors'
  content[-9] ^= 1
  path.write_bytes(content)
  with pytest.raises(ValueError, match=r'x\.safetensors has changed'):
    params.read(path)
  content[-9] ^= 1
  path.write_bytes(content.replace(b'ttchen', b'ttchem'))
  with pytest.raises(ValueError, match=r'x\.safetensors has changed'):
    params.read(path)


def without_a_tensor(trained):
  del trained.variables['params']['head']['class_output']['bias']


def of_another_shape(trained):
  trained.variables['params']['head']['class_output']['bias'] = np.zeros(5, np.float32)


@pytest.mark.parametrize(
  ('change', 'fields', 'message'),
  [
    (
      without_a_tensor,
      {},
      r'class_output\.bias: stored nothing, expected float32\[3\]',
    ),
    (
      of_another_shape,
      {},
      r'class_output\.bias: stored float32\[5\], expected .*\[3\]',
    ),
    (None, {'class_names': ('a',), 'category_ids': (1,)}, 'num_classes=3 and 1 names'),
    (None, {'category_ids': (1,)}, '3 names and 1 category_ids'),
    (None, {'config': ml_collections.ConfigDict()}, 'does not describe'),
  ],
)
def test_what_does_not_fit_together_is_named_on_reading(
  tmp_path, change, fields, message
):
  trained = dataclasses.replace(detectors.trained(), **fields)
  if change:
    change(trained)
  params.write_weights(trained, tmp_path)
  with pytest.raises(ValueError, match=message) as error:
    params.read(tmp_path / params.FILE)
  assert str(tmp_path / params.FILE) in str(error.value)


def test_another_file_a_cut_one_and_none_are_errors(exported, tmp_path):
  folder, _ = exported
  path = tmp_path / 'x.safetensors'
  save_file({'a': np.zeros(2)}, path)
  with pytest.raises(ValueError, match='not part of an export'):
    params.read(path)
  save_file({'a': np.zeros(2)}, path, metadata={'format': 'pt'})
  with pytest.raises(ValueError, match='not part of an export'):
    params.read(path)
  path.write_bytes((folder / params.FILE).read_bytes()[:-10])
  with pytest.raises(ValueError, match='complete safetensors file'):
    params.read(path)
  with pytest.raises(FileNotFoundError, match='none.safetensors does not exist'):
    params.read(tmp_path / 'none.safetensors')


def test_a_newer_version_says_to_update(tmp_path):
  path = tmp_path / 'x.safetensors'
  head = {'kind': '"gfl_jax export"', 'format_version': '9', 'names': 'no JSON'}
  save_file({'a': np.zeros(2)}, path, metadata=head)
  with pytest.raises(ValueError, match='format version 9.*update gfl_jax'):
    params.read(path)
