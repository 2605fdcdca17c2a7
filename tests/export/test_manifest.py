import hashlib
import json

import numpy as np
import pytest

from gfl_jax.export import manifest
from gfl_jax.weights.trained import Trained
from tests import tiny


@pytest.fixture
def trained():
  names, ids = ('cell', 'plätt', 'c'), (1, 7, 3)
  return Trained(tiny.config().lock(), {'params': {}}, names, ids, {'step': 5})


@pytest.fixture
def folder(tmp_path, trained):
  (tmp_path / 'a.bin').write_bytes(b'abc')
  programs = [{'file': 'a.bin', 'canvas': [64, 64], 'batch': 'any'}]
  manifest.write(tmp_path, trained, format='stablehlo', programs=programs)
  return tmp_path


def edit(folder, **changes):
  path = folder / manifest.NAME
  path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_what_is_written_is_read(folder, trained):
  found = manifest.read(folder)
  assert found.format == 'stablehlo' and found.origin == {'step': 5}
  assert found.class_names == trained.class_names
  assert found.category_ids == trained.category_ids
  assert found.config.to_json() == trained.config.to_json()
  assert found.config.is_locked
  assert found.programs[0]['batch'] == 'any' and found.verification == {}
  assert found.files == {'a.bin': hashlib.sha256(b'abc').hexdigest()}
  manifest.record_verification(folder, {'images': 4})
  assert manifest.read(folder).verification == {'images': 4}


def test_the_size_rule_it_states_is_the_one_of_evaluation(folder):
  from gfl_jax.data import transforms

  rule = json.loads((folder / manifest.NAME).read_text())['preprocessing']
  for h, w in [(64, 64), (33, 100), (480, 640), (1, 900), (7, 5)]:
    scale = min(rule['short_side'] / min(h, w), rule['max_long_side'] / max(h, w))
    stated = [max(1, int(x * scale + 0.5)) for x in (h, w)]
    used = transforms.resized_sizes(
      np.array([[h, w]]), rule['short_side'], rule['max_long_side']
    )
    assert used[0].tolist() == stated


def test_a_canvas_that_is_not_square_has_its_transpose_beside_it():
  config = tiny.config()
  assert manifest.canvases(config) == ((64, 64),)
  config.data.canvas = (64, 96)
  assert manifest.canvases(config) == ((64, 96), (96, 64))


def test_a_newer_version_says_to_update(folder):
  edit(folder, format_version=manifest.VERSION + 1)
  with pytest.raises(ValueError, match=r'format version 2.*up to 1: update gfl_jax'):
    manifest.read(folder)


def test_a_newer_version_may_hold_all_else_in_another_form(folder):
  newer = {'kind': 'gfl_jax export', 'format_version': 9}
  (folder / manifest.NAME).write_text(json.dumps(newer))
  with pytest.raises(ValueError, match=r'manifest.json has format version 9.*update'):
    manifest.read(folder)


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'kind': 'else'}, 'not part of an export'),
    ({'format': 'tflite'}, r"format 'tflite' is not one of \('params'"),
    ({'files': {'../a.bin': ''}}, 'names a file outside its folder'),
    ({'files': {'a.bin': '00'}}, r'a\.bin has changed'),
    ({'class_names': None}, 'complete manifest'),
    ({'class_names': 'abc'}, 'complete manifest'),
    ({'category_ids': [1, 7]}, '3 names and 2 category_ids'),
    ({'config': {}}, 'complete manifest'),
    ({'format_version': 'x'}, r"manifest.json has format_version='x', no number"),
    ({'format_version': None}, r'manifest.json has format_version=None, no number'),
  ],
)
def test_what_cannot_be_meant_is_named(folder, changes, message):
  edit(folder, **changes)
  with pytest.raises(ValueError, match=message):
    manifest.read(folder)


def test_a_changed_a_missing_and_a_truncated_file_are_named(folder):
  (folder / 'a.bin').write_bytes(b'abd')
  with pytest.raises(ValueError, match=r'a\.bin has changed'):
    manifest.read(folder)
  (folder / 'a.bin').unlink()
  with pytest.raises(FileNotFoundError, match=r'a\.bin is missing'):
    manifest.read(folder)
  path = folder / manifest.NAME
  path.write_text(path.read_text()[:100])
  with pytest.raises(ValueError, match='complete manifest'):
    manifest.read(folder)
  path.unlink()
  with pytest.raises(FileNotFoundError, match='not the folder of an export'):
    manifest.read(folder)
