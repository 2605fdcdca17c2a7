import pathlib

import pytest

from gfl_jax.files import write_whole


@pytest.mark.parametrize('content', ['rosé \n鳥', b'\x00\xff\r\n'])
def test_a_file_is_replaced_and_nothing_else_is_left(tmp_path, content):
  path = tmp_path / 'file.txt'
  path.write_text('before')
  write_whole(path, content)
  read = path.read_bytes()
  assert (read.decode() if isinstance(content, str) else read) == content
  assert list(tmp_path.iterdir()) == [path]


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
  def half(path, data):
    with path.open('wb') as file:
      file.write(data[:2])
    raise OSError('no space left')

  path = tmp_path / 'file.txt'
  path.write_text('before')
  monkeypatch.setattr(pathlib.Path, 'write_bytes', half)
  with pytest.raises(OSError, match='no space'):
    write_whole(path, 'after')
  assert path.read_text() == 'before'
