"""Which errors a script shows in one line, and which are worth another start."""

import errno
import os

import jax
import pytest

from gfl_jax import errors


def test_the_errors_of_the_package_are_those_of_python_too():
  missing = errors.MissingFileError('no such folder')
  assert isinstance(missing, FileNotFoundError) and isinstance(missing, ValueError)
  full = errors.StorageError(errno.ENOSPC, 'No space left on device', '/runs')
  assert full.errno == errno.ENOSPC and full.filename == '/runs'


def test_what_the_system_says_of_a_folder_is_one_line(tmp_path):
  with pytest.raises(errors.UserError, match='not_there') as error:
    with errors.storage_errors(tmp_path):
      (tmp_path / 'not_there' / 'file').write_text('')
  assert error.value.errno == errno.ENOENT
  with pytest.raises(ZeroDivisionError), errors.storage_errors(tmp_path):
    raise ZeroDivisionError


def caused_by(cause):
  error = ValueError('image 7 cannot be read')
  error.__cause__ = cause
  return error


@pytest.mark.parametrize(
  'error',
  [
    OSError(errno.ESTALE, os.strerror(errno.ESTALE)),
    caused_by(OSError(errno.ETIMEDOUT, 'timed out')),
    errors.LateProcessError('process 1 did not come'),
    ConnectionResetError(errno.ECONNRESET, 'reset'),
    jax.errors.JaxRuntimeError('UNAVAILABLE: the coordinator cannot be reached'),
    jax.errors.JaxRuntimeError('INTERNAL: NCCL: remote process exited or there was'),
    jax.errors.JaxRuntimeError('Gloo all-reduce failed: Connection closed by peer'),
  ],
)
def test_transient_errors_are_worth_another_start(error):
  assert errors.is_transient(error)


@pytest.mark.parametrize(
  'error',
  [
    TypeError('a new loss'),
    ValueError('a new loss'),
    errors.UserError('a wrong config'),
    errors.NonFiniteLossError('step 3'),
    OSError(errno.EIO, 'a bad sector'),
    OSError(errno.ENOSPC, 'a full disk'),
    MemoryError(),
    jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: out of memory on the device'),
    jax.errors.JaxRuntimeError('INVALID_ARGUMENT: shapes differ'),
    None,
  ],
)
def test_other_errors_are_not_transient(error):
  assert not errors.is_transient(error)


def test_a_bad_sector_is_of_the_disk_and_not_of_the_image():
  assert errors.is_of_storage(OSError(errno.EIO, 'Input/output error'))
  assert not errors.is_of_storage(FileNotFoundError(errno.ENOENT, 'no such file'))
