import pytest

from gfl_jax.deploy import state_dicts


def test_a_weights_file_that_cannot_be_read_is_named(tmp_path):
  with pytest.raises(FileNotFoundError, match=r'missing\.npz does not exist'):
    state_dicts.read_state_dict(tmp_path / 'missing.npz')
  (tmp_path / 'weights.bin').write_bytes(b'')
  with pytest.raises(ValueError, match=r'weights\.bin must end in'):
    state_dicts.read_state_dict(tmp_path / 'weights.bin')
