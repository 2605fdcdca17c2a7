import errno
import fcntl
import os
import pathlib
import resource
import socket

import pytest

from gfl_jax.errors import StorageError, UserError
from gfl_jax.files import AppendLog, atomic_write, check_folder, holder, lock


@pytest.mark.parametrize('content', ['rosé \n鳥', b'\x00\xff\r\n'])
def test_a_file_is_replaced_and_nothing_else_is_left(tmp_path, content):
  path = tmp_path / 'file.txt'
  path.write_text('before')
  atomic_write(path, content)
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
    atomic_write(path, 'after')
  assert path.read_text() == 'before'


def test_lines_wait_for_a_full_disk(tmp_path):
  path = tmp_path / 'log'
  path.write_text('before\n')
  file = AppendLog(path)
  assert file.write('first\n') is None
  hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (16, hard[1]))  # as if it were full
  try:
    assert isinstance(file.write('the second\n'), OSError)
    assert isinstance(file.write('3\n'), OSError)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, hard)
  assert path.read_text() == 'before\nfirst\nthe'
  assert file.close() is None
  assert path.read_text() == 'before\nfirst\nthe second\n3\n'


def test_a_lock_names_its_holder(tmp_path):
  path = tmp_path / 'new' / 'lock'
  with lock(path, wait=False) as held:
    assert held
    with lock(path, wait=False) as other:
      assert not other
      assert f'{os.getpid()} on {socket.gethostname()}, since 2' in holder(path)
  with lock(path, wait=True) as held:  # free again; the file stays
    assert held
  path.write_text('damaged')
  assert holder(path) == 'another process'


@pytest.mark.parametrize('number', [errno.ENOLCK, errno.ENOSYS])
def test_a_folder_that_cannot_be_locked(tmp_path, monkeypatch, caplog, number):
  (tmp_path / 'file').write_text('')
  with pytest.raises(StorageError, match='file'), lock(tmp_path / 'file/x', wait=False):
    pass

  def no_locks(file, kind):
    raise OSError(number, 'No locks available')

  monkeypatch.setattr(fcntl, 'flock', no_locks)
  with lock(tmp_path / 'lock', wait=False) as held:
    assert held and 'No locks available' in caplog.text


@pytest.mark.parametrize(
  'name',
  ['lr[0.1]', 'a*', 'b?', 'back\\slash', '[x]/run', 'gs:/x', os.fsdecode(b'f\xfcr')],
)
def test_a_path_that_is_a_pattern_is_refused(tmp_path, monkeypatch, name):
  with pytest.raises(UserError, match='--workdir'):
    check_folder(tmp_path / name, '--workdir')
  (tmp_path / name).mkdir(parents=True)
  monkeypatch.chdir(tmp_path / name)  # what lies above counts as well
  with pytest.raises(UserError, match='--workdir'):
    check_folder('run', '--workdir')


def test_a_mount_that_looks_like_a_bucket_is_refused():
  for path in ('/s3/runs', '/gs', '/hf/a'):
    with pytest.raises(UserError, match=path[:3]):
      check_folder(path, '--workdir')
  for path in ('/s3x/runs', '/mnt/s3/runs', 's3/runs', 's3:/x'):
    check_folder(path, '--workdir')
