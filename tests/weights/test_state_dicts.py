"""Files of other frameworks: all their forms give the same arrays, none runs code."""

import collections
import os
import pickle
import sys
import types

import numpy as np
import pytest

from gfl_jax.weights import state_dicts, torch_files


@pytest.fixture(autouse=True)
def in_this_process(request, monkeypatch):
  """Starting torch takes seconds: but for one test, it reads in the tests' process."""
  if 'own_process' not in request.node.name:
    for suffix in ('.pth', '.pt'):
      monkeypatch.setitem(state_dicts._READERS, suffix, torch_files.read)


class Malicious:
  """Runs a command when a plain unpickler reads it."""

  def __init__(self, function, *arguments):
    self.parts = function, arguments

  def __reduce__(self):
    return self.parts


def arrays():
  rng = np.random.default_rng(0)
  draw = lambda *shape: rng.standard_normal(shape, np.float32)
  return {
    'backbone.conv1.weight': draw(4, 3, 7, 7),
    'backbone.bn1.running_mean': draw(4),
    'bbox_head.gfl_cls.bias': draw(2),
  }


def other_arrays():
  return {name: value + 1 for name, value in arrays().items()}


def tensors(entries):
  torch = pytest.importorskip('torch')
  return {name: torch.from_numpy(value) for name, value in entries.items()}


def save(path, content, *, legacy=False):
  torch = pytest.importorskip('torch')
  torch.save(content, path, _use_new_zipfile_serialization=not legacy)
  return path


def assert_same(found, expected):
  assert found.keys() == expected.keys()
  for name, value in found.items():
    assert value.dtype == np.float32
    np.testing.assert_array_equal(value, expected[name], err_msg=name)


def test_npz_and_safetensors_hold_the_arrays_themselves(tmp_path):
  safetensors = pytest.importorskip('safetensors.numpy')
  np.savez(tmp_path / 'x.npz', **arrays())
  safetensors.save_file(arrays(), tmp_path / 'x.safetensors')
  for name in ('x.npz', 'x.safetensors'):
    assert_same(state_dicts.read_state_dict(tmp_path / name).arrays, arrays())


@pytest.mark.parametrize('legacy', [False, True])
@pytest.mark.parametrize('below', [None, 'state_dict', 'model'])
@pytest.mark.parametrize('prefix', ['', 'module.'])
def test_torch_files_of_every_form_hold_the_same_arrays(
  tmp_path, legacy, below, prefix
):
  content = {prefix + name: x for name, x in tensors(arrays()).items()}
  content = {below: content, 'epoch': 12} if below else content
  path = save(tmp_path / 'x.pth', content, legacy=legacy)
  found = state_dicts.read_state_dict(path)
  assert_same(found.arrays, arrays())
  assert not found.averaged and found.class_names == ()


@pytest.mark.parametrize(
  'meta',
  [
    {'CLASSES': ('cat', 'dog'), 'mmdet_version': '2.25.0'},
    {'dataset_meta': {'classes': ['cat', 'dog'], 'palette': [(1, 2, 3)]}},
    {'dataset_meta': {'CLASSES': ('cat', 'dog')}},
  ],
)
def test_names_of_classes_are_where_mmdet_keeps_them(tmp_path, meta):
  content = {'meta': meta, 'state_dict': tensors(arrays())}
  path = save(tmp_path / 'x.pth', content)
  assert state_dicts.read_state_dict(path).class_names == ('cat', 'dog')


def averaged_checkpoint(form):
  """What mmdet's hooks save when arrays() is the average, other_arrays() trained."""
  average, trained = tensors(arrays()), tensors(other_arrays())
  if form == '3.x':
    torch = pytest.importorskip('torch')
    second = {f'module.{name}': x for name, x in trained.items()}
    return {
      'state_dict': average,
      'ema_state_dict': {'steps': torch.tensor(7)} | second,
    }
  buffers = {f'ema_{name.replace(".", "_")}': x for name, x in trained.items()}
  return {'state_dict': average | buffers}


@pytest.mark.parametrize('form', ['2.x', '3.x'])
def test_the_average_has_the_plain_names_and_the_trained_ones_are_the_others(
  tmp_path, form
):
  path = save(tmp_path / 'x.pth', averaged_checkpoint(form))
  average = state_dicts.read_state_dict(path)
  trained = state_dicts.read_state_dict(path, 'raw')
  assert average.averaged and not trained.averaged
  assert_same(average.arrays, arrays())
  assert_same(trained.arrays, other_arrays())


def test_buffers_that_were_not_averaged_belong_to_both(tmp_path):
  content = averaged_checkpoint('2.x')
  del content['state_dict']['ema_backbone_bn1_running_mean']
  trained = state_dicts.read_state_dict(save(tmp_path / 'x.pth', content), 'raw')
  name = 'backbone.bn1.running_mean'
  assert_same(trained.arrays, other_arrays() | {name: arrays()[name]})


@pytest.mark.parametrize('dtype', ['float16', 'bfloat16', 'float64'])
def test_other_floating_point_is_read_as_float32(tmp_path, dtype):
  torch = pytest.importorskip('torch')
  values = torch.tensor([0.5, -1.25, 3.0]).to(getattr(torch, dtype))
  values = torch.nn.Parameter(values)
  path = save(tmp_path / 'x.pth', {'x': values, 'count': torch.tensor(3)})
  found = state_dicts.read_state_dict(path).arrays
  assert_same({'x': found['x']}, {'x': np.float32([0.5, -1.25, 3.0])})
  assert found['count'] == 3 and found['count'].dtype == np.int64


def history_module(monkeypatch):
  """A module with mmengine's class, under its name, as long as the file is written."""

  class HistoryBuffer:
    def __init__(self, values):
      self._log_history = np.array(values)
      self._statistics_methods = {'mean': HistoryBuffer.mean}

    def mean(self):
      return self._log_history.mean()

  name = 'mmengine.logging.history_buffer'
  HistoryBuffer.__module__ = name
  HistoryBuffer.__qualname__ = 'HistoryBuffer'
  HistoryBuffer.mean.__module__ = name
  HistoryBuffer.mean.__qualname__ = 'HistoryBuffer.mean'
  for part in ('mmengine', 'mmengine.logging', name):
    monkeypatch.setitem(sys.modules, part, types.ModuleType(part))
  sys.modules[name].HistoryBuffer = HistoryBuffer
  return HistoryBuffer


@pytest.mark.parametrize('legacy', [False, True])
def test_the_log_that_mmengine_keeps_beside_the_tensors_is_passed_over(
  tmp_path, monkeypatch, legacy
):
  with monkeypatch.context() as patch:
    logs = history_module(patch)([0.5, 0.25])
    content = {
      'meta': {'dataset_meta': {'classes': ('cat', 'dog')}, 'seed': np.int64(3)},
      'message_hub': {'log_scalars': collections.OrderedDict({'train/loss': logs})},
      'state_dict': collections.OrderedDict(tensors(arrays())),
    }
    path = save(tmp_path / 'x.pth', content, legacy=legacy)
  assert 'mmengine' not in sys.modules
  found = state_dicts.read_state_dict(path)
  assert_same(found.arrays, arrays())
  assert found.class_names == ('cat', 'dog')


@pytest.mark.parametrize('form', ['zip', 'legacy', 'pickle'])
@pytest.mark.parametrize('function', ['system', 'eval'])
def test_a_pickle_that_would_run_a_command_does_not(tmp_path, form, function):
  torch = pytest.importorskip('torch')
  victim = tmp_path / 'executed'
  attack = {
    'system': Malicious(os.system, f'touch {victim}'),
    'eval': Malicious(eval, f'open({str(victim)!r}, "w").close()'),
  }[function]
  path, content = tmp_path / 'x.pth', {'state_dict': tensors(arrays()), 'x': attack}
  if form == 'pickle':
    path.write_bytes(pickle.dumps({'x': attack}, protocol=2))
  else:
    save(path, content, legacy=form == 'legacy')
  with pytest.raises(ValueError, match=r'x\.pth.*nothing of it was run|can read'):
    state_dicts.read_state_dict(path)
  assert not victim.exists()
  if form != 'pickle':  # the attack is one
    torch.load(path, weights_only=False)
    assert victim.exists()


def written(path, content):
  path.write_bytes(content)
  return path


def test_a_file_that_is_cut_off_or_something_else_is_named(tmp_path):
  whole = {
    form: save(tmp_path / f'{form}.pth', tensors(arrays()), legacy=form == 'legacy')
    for form in ('zip', 'legacy')
  }
  contents = {
    'text': b'version https://git-lfs.github.com/spec/v1\n',
    'page': b'<!DOCTYPE html>',
    'pickle': pickle.dumps({'x': 1}),
    'zip without tensors': b'PK\x05\x06' + bytes(18),
  }
  contents |= {
    f'{form} cut at {part}': path.read_bytes()[: int(path.stat().st_size * part)]
    for form, path in whole.items()
    for part in (0.01, 0.5, 0.97)
  }
  for name, content in contents.items():
    path = written(tmp_path / 'x.pth', content)
    wrong = 'is damaged or cut off' if 'cut at' in name else 'is not a checkpoint that'
    with pytest.raises(ValueError, match=rf'x\.pth {wrong}') as error:
      state_dicts.read_state_dict(path)
    assert len(str(error.value).splitlines()) == 1, name
    assert 'weights_only' not in str(error.value), name  # torch's advice to be careless


@pytest.mark.parametrize(
  'content, message',
  [
    ([1, 2], 'holds a list, not a dict'),
    ({}, 'holds no arrays'),
    ({'state_dict': {}}, 'holds no arrays'),
    (
      {'epoch': 3, 'net': {}},
      "'epoch' is of type int, not an array.*below 'state_dict'",
    ),
    ({'state_dict': {'x': np.ones(2)}}, "'x' is of type _reconstruct, not an array"),
    (
      {'x': Malicious(getattr, collections.OrderedDict, 'pop')},
      "'x' is of type getattr, not",
    ),
  ],
)
def test_a_torch_file_without_a_state_dict_is_an_error(tmp_path, content, message):
  path = save(tmp_path / 'x.pt', content)
  with pytest.raises(ValueError, match=message):
    state_dicts.read_state_dict(path)


def test_damaged_files_of_other_kinds_are_named(tmp_path):
  pytest.importorskip('safetensors')
  with pytest.raises(FileNotFoundError, match=r'missing\.npz does not exist'):
    state_dicts.read_state_dict(tmp_path / 'missing.npz')
  with pytest.raises(ValueError, match=r'x\.bin must end in \.npz, \.safetensors'):
    state_dicts.read_state_dict(written(tmp_path / 'x.bin', b''))
  with pytest.raises(ValueError, match=r'x\.npz cannot be read as a numpy archive'):
    state_dicts.read_state_dict(written(tmp_path / 'x.npz', b'PK'))
  for suffix in ('npz', 'safetensors', 'pth', 'pt'):
    with pytest.raises(ValueError, match=rf'x\.{suffix} is empty'):
      state_dicts.read_state_dict(written(tmp_path / f'x.{suffix}', b''))
  with pytest.raises(ValueError, match='cannot be read as a safetensors file'):
    state_dicts.read_state_dict(written(tmp_path / 'x.safetensors', b'12345678{'))
  np.savez(tmp_path / 'objects.npz', x=np.array([Malicious(os.system, 'true')]))
  with pytest.raises(ValueError, match=r'objects\.npz cannot be read'):
    state_dicts.read_state_dict(tmp_path / 'objects.npz')
  with pytest.raises(ValueError, match="weights='best' must be"):
    state_dicts.read_state_dict(tmp_path / 'objects.npz', 'best')


def test_torch_reads_in_an_own_process_the_same(tmp_path):
  torch = pytest.importorskip('torch')
  meta = {'dataset_meta': {'classes': ['cat', 'dog']}}
  content = averaged_checkpoint('3.x') | {'meta': meta}
  content['state_dict']['count'] = torch.tensor(3)
  content['state_dict']['transposed'] = torch.arange(6.0).reshape(2, 3).T
  path = save(tmp_path / 'x.pth', content)
  found = state_dicts.read_state_dict(path, 'raw')
  count, transposed = found.arrays.pop('count'), found.arrays.pop('transposed')
  assert count.shape == () and count == 3
  np.testing.assert_array_equal(transposed, np.arange(6).reshape(2, 3).T)
  assert_same(found.arrays, other_arrays())
  assert found.class_names == ('cat', 'dog')
  path.write_bytes(path.read_bytes()[:-100])
  with pytest.raises(ValueError, match=r'^weights file .*x\.pth is damaged or cut off'):
    state_dicts.read_state_dict(path)


def test_without_torch_the_error_says_what_to_do(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, 'torch', None)
  with pytest.raises(ValueError, match=r"pip install -e '\.\[torch\]', or save"):
    state_dicts.read_state_dict(written(tmp_path / 'x.pth', b'x'))
