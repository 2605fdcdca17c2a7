"""What a script does around its main function: settings before jax, errors after."""

import logging
import os
import pathlib
import re
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from gfl_jax.errors import AGAIN_STATUS, FORESEEN, UserError, is_worth_another_start

# Eigen's convolutions instead of YNN's; and huge pages for the large temporaries that
# XLA's CPU backend takes afresh at each step. `scripts/benchmark.py` measures both.
# And an end to collectives between processes that none of them is in any more: the
# default is half an hour. Shorter, and a peer that compiles longer would end the run.
_XLA_FLAGS = (
  '--xla_cpu_experimental_ynn_fusion_type= --xla_cpu_collective_timeout_seconds=300'
)
_TUNABLE = 'glibc.malloc.hugetlb=1'
_MARK = 'GFL_JAX_LAUNCHED'
_TRACEBACK = 'GFL_JAX_TRACEBACK'
_IN_CONFIG = 'Error whilst parsing config file'  # as ml_collections has it


def run(main: Callable[[list[str]], Any], *, several_processes: bool = False) -> None:
  """Runs a script's main function; a foreseen error is one line, not a traceback.

  With GFL_JAX_TRACEBACK=1 in the environment errors show where they came from.

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
    from gfl_jax.training import hosts

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
  hosts = sys.modules.get('gfl_jax.training.hosts')
  if hosts and not hosts.connected():
    hosts = None
  if isinstance(error, KeyboardInterrupt):
    text, code = str(error) or 'Stopped.', getattr(error, 'exit_code', None)
    if hosts and code is None:
      hosts.leave(text, 130, again=True)
    # All have stopped at the same step; one says so.
    if not hosts or hosts.finish() == 0:
      print(text, file=sys.stderr)
    sys.exit(code or 130)
  elif isinstance(error, FORESEEN) and _TRACEBACK not in os.environ:
    text, advice = f'error: {error}', f'({_TRACEBACK}=1 in the environment shows where)'
    again = is_worth_another_start(error)
    status = AGAIN_STATUS if again else 1
    if hosts:
      hosts.leave(text, status, again=again, advice=advice)
    print(f'\n{text}\n{advice}', file=sys.stderr)
    sys.exit(status)
  elif hosts:
    hosts.leave_after_failure(error, show=_TRACEBACK in os.environ)
  raise error


def _parse_flags(argv: list[str]) -> list[str]:
  from absl import flags, logging

  values = flags.FLAGS
  try:
    arguments = values(argv)
    # Else absl's own start would show the notes of all libraries.
    if values['verbosity'].using_default_value:
      values.verbosity = logging.WARNING
    if 'config' in values:
      hasattr(values.config, 'seed')  # one that is not loaded says so when it is used
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
  except AttributeError as error:
    # ml_collections hands on the text of a KeyError, quotes and escapes included.
    suggestion = re.search('Did you mean "(.*)" instead of "(.*)"', str(error))
    if not suggestion:
      raise UserError(f'the config has no field {error}') from error
    right, wrong = suggestion.groups()
    raise UserError(
      f'the config has no field {wrong!r}: did you mean {right!r}?'
    ) from error


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

  glibc reads its tunables only when a process starts, and an XLA flag that the
  installed version does not know ends the process: the flag is given only to versions
  that it was tried on.
  """
  # Our own lines are shown as they are; of the libraries', warnings alone.
  ours = logging.getLogger('gfl_jax')
  ours.setLevel(logging.INFO)
  ours.addHandler(logging.StreamHandler())
  ours.propagate = False
  if _MARK in os.environ:
    return
  from importlib.metadata import version

  environment = os.environ | {_MARK: '1'}
  environment.setdefault('GLIBC_TUNABLES', _TUNABLE)
  if version('jaxlib').startswith(('0.10.', '0.12.')):
    flags = environment.get('XLA_FLAGS', '')
    environment['XLA_FLAGS'] = f'{_XLA_FLAGS} {flags}'.strip()
  os.execve(sys.executable, [sys.executable, *sys.argv], environment)
