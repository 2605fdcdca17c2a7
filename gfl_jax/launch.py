"""What a script does around its main function: settings before jax, errors after."""

import contextlib
import errno
import importlib.util
import logging
import mmap
import os
import pathlib
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn, TextIO

from gfl_jax.errors import EXIT_RETRYABLE, UserError, is_transient

# Eigen's convolutions instead of YNN's; and huge pages for the large temporaries that
# XLA's CPU backend takes afresh at each step. `scripts/benchmark.py` measures both.
# And an end to collectives between processes that none of them is in any more: the
# default is half an hour. Shorter, and a peer that compiles longer would end the run.
_XLA_FLAGS = {
  'xla_cpu_experimental_ynn_fusion_type': '',
  'xla_cpu_collective_timeout_seconds': '300',
}
_TUNABLE = 'glibc.malloc.hugetlb=1'
_MARK = 'GFL_JAX_LAUNCHED'
_TRACEBACK = 'GFL_JAX_TRACEBACK'
_IN_CONFIG = 'Error whilst parsing config file'  # as ml_collections has it


def run(main: Callable[[list[str]], Any], *, several_processes: bool = False) -> None:
  """Runs a script's main function; a UserError is one line, not a traceback.

  With GFL_JAX_TRACEBACK=1 in the environment these, too, show where they came from.

  Args:
    main: takes the arguments that are no flags, returns the exit status.
    several_processes: the script may be one of several processes, on one host or many:
      it gets the flags that join them, and is joined before `main` begins.
  """
  from absl import app, flags

  if several_processes:
    flags.disclaim_key_flags()  # they are the script's, for its --help
    flags.DEFINE_string('coordinator', None, 'HOST:PORT of process 0.')
    flags.DEFINE_integer('num_processes', None, 'Processes of this run.')
    flags.DEFINE_integer('process_id', None, 'Number of this process, from 0.')

  def joined_main(argv: list[str]) -> Any:
    from gfl_jax.multihost import hosts

    values = flags.FLAGS
    hosts.connect(values.coordinator, values.num_processes, values.process_id)
    status = main(argv)
    hosts.finish()
    return status

  prepare_process()
  try:
    app.run(joined_main if several_processes else main, flags_parser=_parse_flags)
  except (Exception, KeyboardInterrupt) as error:
    _end(error)


def _end(error: BaseException) -> NoReturn:
  """Ends the process as the error asks; as one of several it takes the others along."""
  hosts = sys.modules.get('gfl_jax.multihost.hosts')
  if hosts and not hosts.connected():
    hosts = None
  if isinstance(error, KeyboardInterrupt):
    text, code = str(error) or 'Preempted.', getattr(error, 'exit_code', None)
    if hosts and code is None:
      hosts.leave(text, 130, retryable=True)
    # All have stopped at the same step; one says so.
    if not hosts or hosts.finish() == 0:
      print(text, file=sys.stderr)
    sys.exit(code or 130)
  retryable = is_transient(error)
  status = EXIT_RETRYABLE if retryable else 1
  if isinstance(error, UserError) and _TRACEBACK not in os.environ:
    text, advice = f'error: {error}', f'({_TRACEBACK}=1 in the environment shows where)'
    if hosts:
      hosts.leave(text, status, retryable=retryable, advice=advice)
    print(f'\n{text}\n{advice}', file=sys.stderr)
    sys.exit(status)
  if hosts:
    hosts.leave_after_failure(error, show=_TRACEBACK in os.environ)
  if retryable:
    traceback.print_exception(error)
    sys.exit(status)
  raise error


def require_flags(names: Sequence[str]) -> None:
  """Makes flags of a script required, and refuses them empty.

  An empty folder would be the one where the user stands.
  """
  from absl import flags

  flags.mark_flags_as_required(names)
  for name in names:
    flags.register_validator(
      name, lambda value: value != '', f'--{name} is empty: give it a value'
    )


def _parse_flags(argv: list[str]) -> list[str]:
  from absl import flags, logging

  values = flags.FLAGS
  try:
    arguments = values([_expand_home(argument) for argument in argv])
    # Else absl's own start would show the notes of all libraries.
    if values['verbosity'].using_default_value:
      values.verbosity = logging.WARNING
    if 'config' in values:
      _check_is_config(values.config, argv)
    return arguments
  except flags.Error as error:
    flag, is_config, _ = str(error).partition(f': {_IN_CONFIG}')
    if not is_config:
      sys.exit(f'\nerror: {error}\n(--help shows the flags)')
    # ml_collections hands on a traceback as text, around the error itself.
    cause: BaseException | None = error
    while cause and _IN_CONFIG in str(cause):
      cause = cause.__context__
    raise UserError(f'{flag.removeprefix("flag ")}: {cause}') from error
  except OSError as error:
    # ml_collections tells of a search in several places, of which there is one.
    searched = re.search(r'Attempted \[Relative path\]:\s+(.+)', str(error))
    if searched and not os.path.exists(searched[1]):
      raise UserError(f'--config={searched[1]} does not exist') from error
    file = f'={searched[1]}' if searched else ''
    reason = str(error.__cause__ or error).splitlines()[-1].strip()
    raise UserError(f'--config{file} cannot be loaded: {reason}') from error
  except (AttributeError, KeyError) as error:
    # ml_collections hands on the text of a KeyError, quotes and escapes included.
    if 'ml_collections' not in traceback.extract_tb(error.__traceback__)[-1].filename:
      raise  # of the code of a config file
    text = str(error.args[0]).strip('\'"') if error.args else ''
    if suggestion := re.search('Did you mean "(.*)" instead of "(.*)"', text):
      right, wrong = suggestion.groups()
      text = f'{wrong!r}: did you mean {right!r}?'
    elif looked_up := re.search('Attempting to lookup: (.*)', text):
      text = repr(looked_up[1])
    else:
      text = repr(text)
    if 'get_config' in text:
      raise UserError(f'{_config_flag(argv)} has no function get_config()') from error
    raise UserError(f'the config has no field {text}') from error


def _check_is_config(config: Any, argv: list[str]) -> None:
  if config is None:
    return  # not given: where it is required, absl has said so
  hasattr(config, 'seed')  # one that is not loaded says so when it is used
  if not hasattr(config, 'to_dict'):
    raise UserError(
      f'{_config_flag(argv)}: get_config() returns a {type(config).__name__}, not an'
      ' ml_collections.ConfigDict'
    )


def _config_flag(argv: list[str]) -> str:
  return next((word for word in argv if word.startswith('--config=')), '--config')


def use_compilation_cache(path: str | os.PathLike) -> None:
  """Keeps compiled programs beside a run's folder, for its restarts and its kin.

  Args:
    path: the run's folder, or that of an export, or a lone file.
  """
  import jax

  folder = pathlib.Path(path).absolute().parent / '.compilation_cache'
  jax.config.update('jax_compilation_cache_dir', str(folder))


def prepare_process() -> None:
  """Starts this program again with the settings, unless that was done already.

  glibc reads its tunables only when a process starts. Not under a debugger or profiler,
  nor in a notebook's kernel: they would be lost, and huge pages are not worth that.
  """
  _open_standard_streams()
  # Our own lines are shown as they are; of the libraries', warnings alone.
  ours = logging.getLogger('gfl_jax')
  ours.setLevel(logging.INFO)
  ours.addHandler(logging.StreamHandler())
  ours.propagate = False
  if _MARK in os.environ:
    return
  settings = {_MARK: '1', 'XLA_FLAGS': _xla_flags(os.environ.get('XLA_FLAGS', ''))}
  if 'IPython' in sys.modules or hasattr(sys, 'ps1'):  # %run, a notebook, a prompt
    os.environ['XLA_FLAGS'] = settings['XLA_FLAGS']
    return
  os.environ.update(settings)
  os.environ.setdefault('GLIBC_TUNABLES', _TUNABLE)
  if sys.executable and not _is_traced():
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _is_traced() -> bool:
  """Whether a debugger, a profiler or a measurement of coverage is at work.

  A debugger that goes on to the end without a breakpoint traces no more, but is still
  what called this program.
  """
  callers = [frame.f_globals.get('__name__') for frame, _ in traceback.walk_stack(None)]
  monitoring = getattr(sys, 'monitoring', None)  # of Python 3.12 and newer
  tools = [monitoring.get_tool(number) for number in range(6)] if monitoring else []
  return any((sys.gettrace(), sys.getprofile(), 'bdb' in callers, *tools))


def _xla_flags(given: str) -> str:
  """Our flags that the installed jaxlib knows, and after them those of the user.

  One that it does not know would end the process. Flags are registered by name: in the
  library it is a string of C, which a zero byte ends. Names of options that are fields
  of a message, but no flags, do not end so.
  """
  package = importlib.util.find_spec('jaxlib')
  assert package is not None and package.origin is not None
  known = []
  for library in pathlib.Path(package.origin).parent.glob('libjax_common.*'):
    with (
      library.open('rb') as file,
      mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
    ):
      known = [name for name in _XLA_FLAGS if content.find(name.encode() + b'\0') >= 0]
  return ' '.join([*(f'--{name}={_XLA_FLAGS[name]}' for name in known), given]).strip()


def _open_standard_streams() -> None:
  """A run goes on where nobody reads what it says.

  A stream that was closed (`2>&-`) is None, and the next file would take its number; a
  terminal that is gone refuses each line.
  """
  for number in range(3):
    try:
      os.fstat(number)
    except OSError:
      os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
  for name, number in (('stdout', 1), ('stderr', 2)):
    if getattr(sys, name) is None:
      setattr(sys, name, os.fdopen(number, 'w'))
  sys.stdout = _Unread(sys.stdout, only_if_gone=True)
  sys.stderr = _Unread(sys.stderr)


class _Unread:
  """A text stream whose reader may be gone, which ends nothing."""

  def __init__(self, stream: TextIO, *, only_if_gone: bool = False):
    """Wraps `stream`.

    Args:
      stream: what is written to.
      only_if_gone: other errors, as of a full disk that results are written to, are
        raised.
    """
    self._stream, self._only_if_gone = stream, only_if_gone

  def __getattr__(self, name: str) -> Any:
    return getattr(self._stream, name)

  def write(self, text: str) -> int:
    with self._passing_over():
      self._stream.write(text)
    return len(text)

  def flush(self) -> None:
    with self._passing_over():
      self._stream.flush()

  @contextlib.contextmanager
  def _passing_over(self) -> Iterator[None]:
    try:
      yield
    except OSError as error:
      if self._only_if_gone and error.errno not in (errno.EPIPE, errno.EIO):
        raise


def _expand_home(argument: str) -> str:
  """`~` as a shell has it, which expands it at the start of a word alone."""
  return re.sub(
    r'(?:(?<=[=,])|^)~[^/,=]*', lambda found: os.path.expanduser(found[0]), argument
  )
