"""What a script does around its main function: settings before jax, errors after it."""

import errno
import importlib.util
import logging
import mmap
import os
import pathlib
import re
import sys
import traceback
from collections.abc import Callable, Collection, Sequence
from typing import Any, NoReturn, TextIO

from gfl_jax.errors import EXIT_RETRYABLE, UserError, is_transient

_XLA_FLAGS = {
  # Eigen's convolutions instead of YNN's; scripts/benchmark.py measures both.
  'xla_cpu_experimental_ynn_fusion_type': '',
  # An end to collectives that a process has left; the default is half an hour. It must
  # be longer than a process compiles while the others wait.
  'xla_cpu_collective_timeout_seconds': '300',
}
# Huge pages for the large temporaries that XLA's CPU backend allocates at each step.
_TUNABLE = 'glibc.malloc.hugetlb=1'
_LAUNCHED = 'GFL_JAX_LAUNCHED'
_TRACEBACK = 'GFL_JAX_TRACEBACK'
_IN_CONFIG = 'Error whilst parsing config file'  # a text of ml_collections


def run(main: Callable[[list[str]], Any], *, several_processes: bool = False) -> None:
  """Runs a script's main function; a UserError is one line, not a traceback.

  With GFL_JAX_TRACEBACK=1 in the environment a UserError has a traceback, too.

  Args:
    main: takes the arguments that are not flags, returns the exit status.
    several_processes: the script may be one of several processes, on one host or many:
      it gets the flags that join them, and is joined before `main` starts.
  """
  from absl import app, flags

  if several_processes:
    flags.disclaim_key_flags()  # so that the script's --help shows these flags
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
  """Ends the process after an error; one of several processes ends the others, too."""
  hosts = sys.modules.get('gfl_jax.multihost.hosts')
  watchdog = hosts and hosts.watchdog
  if isinstance(error, KeyboardInterrupt):
    text, status = str(error) or 'Interrupted.', getattr(error, 'exit_code', None)
    if watchdog and status is None:
      watchdog.leave(text, retryable=True, status=130)
    # After a preemption all processes stop at the same step; one reports it.
    if hosts is None or hosts.finish() == 0:
      print(text, file=sys.stderr)
    sys.exit(status or 130)
  retryable, show = is_transient(error), _TRACEBACK in os.environ
  status = EXIT_RETRYABLE if retryable else 1
  if isinstance(error, UserError) and not show:
    text, advice = f'error: {error}', f'({_TRACEBACK}=1 in the environment shows where)'
    if watchdog:
      watchdog.leave(text, retryable=retryable, advice=advice)
    print(f'\n{text}\n{advice}', file=sys.stderr)
    sys.exit(status)
  if watchdog:
    watchdog.leave_after(error, show=show)
  if retryable:
    traceback.print_exception(error)
    sys.exit(status)
  raise error


def require_flags(names: Sequence[str]) -> None:
  """Makes flags of a script required; an empty value is an error, too.

  An empty folder would mean the current one.
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
    # By default absl would show the notes of all libraries.
    if values['verbosity'].using_default_value:
      values.verbosity = logging.WARNING
    config = values.config if 'config' in values else None
    hasattr(config, 'seed')  # a config that could not be loaded raises its error here
  except flags.Error as error:
    flag, is_config, _ = str(error).partition(f': {_IN_CONFIG}')
    if not is_config:
      sys.exit(f'\nerror: {error}\n(--help shows the flags)')
    # ml_collections wraps the error in others whose text is a traceback.
    cause: BaseException | None = error
    while cause and _IN_CONFIG in str(cause):
      cause = cause.__context__
    raise UserError(f'{flag.removeprefix("flag ")}: {cause}') from error
  except OSError as error:
    # ml_collections names the places where it looked for the file; there is one.
    searched = re.search(r'Attempted \[Relative path\]:\s+(.+)', str(error))
    if searched and not os.path.exists(searched[1]):
      raise UserError(f'--config={searched[1]} does not exist') from error
    file = f'={searched[1]}' if searched else ''
    reason = str(error.__cause__ or error).splitlines()[-1].strip()
    raise UserError(f'--config{file} cannot be loaded: {reason}') from error
  except (AttributeError, KeyError) as error:
    if 'ml_collections' not in traceback.extract_tb(error.__traceback__)[-1].filename:
      raise  # an error of the config file's own code
    raise UserError(_unknown_name(error, argv)) from error
  if config is not None and not hasattr(config, 'to_dict'):
    raise UserError(
      f'{_config_flag(argv)}: get_config() returns a {type(config).__name__}, not an'
      ' ml_collections.ConfigDict'
    )
  return arguments


def _unknown_name(error: Exception, argv: list[str]) -> str:
  """What ml_collections could not find: a field of the config, or get_config."""
  # The text of a KeyError has quotes around it.
  text = str(error.args[0]).strip('\'"') if error.args else ''
  if 'get_config' in text:
    return f'{_config_flag(argv)} has no function get_config()'
  if suggestion := re.search('Did you mean "(.*)" instead of "(.*)"', text):
    return f'the config has no field {suggestion[2]!r}: did you mean {suggestion[1]!r}?'
  looked_up = re.search('Attempting to lookup: (.*)', text)
  return f'the config has no field {looked_up[1] if looked_up else text!r}'


def _config_flag(argv: list[str]) -> str:
  return next((word for word in argv if word.startswith('--config=')), '--config')


def _expand_home(argument: str) -> str:
  """Expands `~` in the values of flags, too; a shell does it at the start of a word."""
  return re.sub(
    r'(?:(?<=[=,])|^)~[^/,=]*', lambda found: os.path.expanduser(found[0]), argument
  )


def use_compilation_cache(path: str | os.PathLike) -> None:
  """Keeps compiled programs beside a run's folder, for its restarts and similar runs.

  Args:
    path: the folder of a run or of an export, or a file.
  """
  import jax

  folder = pathlib.Path(path).absolute().parent / '.compilation_cache'
  jax.config.update('jax_compilation_cache_dir', str(folder))


def prepare_process() -> None:
  """Starts this program again with its settings in the environment.

  glibc reads its tunables only when a process starts. A process that was started so
  continues, and so do a debugger, a profiler and a notebook, which a new start would
  lose.
  """
  _open_standard_streams()
  # Our own lines are shown as they are; libraries show warnings only.
  ours = logging.getLogger('gfl_jax')
  ours.setLevel(logging.INFO)
  ours.addHandler(logging.StreamHandler())
  ours.propagate = False
  if _LAUNCHED in os.environ:
    return
  os.environ['XLA_FLAGS'] = _xla_flags(os.environ.get('XLA_FLAGS', ''))
  if 'IPython' in sys.modules or hasattr(sys, 'ps1'):  # %run, a notebook, a prompt
    return
  os.environ[_LAUNCHED] = '1'
  os.environ.setdefault('GLIBC_TUNABLES', _TUNABLE)
  if sys.executable and not _is_traced():
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _is_traced() -> bool:
  """Whether a debugger, a profiler or a measurement of coverage is active.

  A debugger without breakpoints no longer traces, but is still among the callers.
  """
  callers = [frame.f_globals.get('__name__') for frame, _ in traceback.walk_stack(None)]
  monitoring = getattr(sys, 'monitoring', None)  # of Python 3.12 and newer
  tools = [monitoring.get_tool(number) for number in range(6)] if monitoring else []
  return any((sys.gettrace(), sys.getprofile(), 'bdb' in callers, *tools))


def _xla_flags(given: str) -> str:
  """Our flags that the installed jaxlib knows, followed by those of the user.

  An unknown flag would end the process. The library holds the name of each flag as a
  string that ends with a zero byte; names of other options do not end so.
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
  """Lets a run go on when its output cannot be written, as to a closed terminal.

  A stream that was closed by `2>&-` is None, and the next file would get its number.
  """
  for number in range(3):
    try:
      os.fstat(number)
    except OSError:
      os.open(os.devnull, os.O_RDWR)  # gets the lowest free number
  for name, number in (('stdout', 1), ('stderr', 2)):
    if getattr(sys, name) is None:
      setattr(sys, name, os.fdopen(number, 'w'))
  # Results on stdout may lose their reader, but an error of their disk is raised.
  sys.stdout = _TolerantStream(sys.stdout, (errno.EPIPE, errno.EIO))
  sys.stderr = _TolerantStream(sys.stderr, errno.errorcode)


class _TolerantStream:
  """A text stream that ignores some errors of the system."""

  def __init__(self, stream: TextIO, ignored: Collection[int]):
    """Wraps `stream`; `ignored` are numbers of errors."""
    self._stream, self._ignored = stream, ignored

  def __getattr__(self, name: str) -> Any:
    return getattr(self._stream, name)

  def write(self, text: str) -> int:
    self._call(self._stream.write, text)
    return len(text)

  def flush(self) -> None:
    self._call(self._stream.flush)

  def _call(self, method: Callable[..., Any], *arguments: str) -> None:
    try:
      method(*arguments)
    except OSError as error:
      if error.errno not in self._ignored:
        raise
