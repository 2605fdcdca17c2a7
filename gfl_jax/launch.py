"""What a script does around its main function: settings before jax, errors after."""

import logging
import os
import pathlib
import re
import sys
from collections.abc import Callable

# Eigen's convolutions instead of YNN's; and huge pages for the large temporaries that
# XLA's CPU backend takes afresh at each step. `scripts/benchmark.py` measures both.
_XLA_FLAG = '--xla_cpu_experimental_ynn_fusion_type='
_TUNABLE = 'glibc.malloc.hugetlb=1'
_MARK = 'GFL_JAX_LAUNCHED'
_TRACEBACK = 'GFL_JAX_TRACEBACK'
_IN_CONFIG = 'Error whilst parsing config file'  # as ml_collections has it


def run(main: Callable[[list[str]], None]) -> None:
  """Runs a script's main function; a foreseen error is one line, not a traceback.

  With GFL_JAX_TRACEBACK=1 in the environment errors show where they came from.
  """
  from absl import app, flags

  def parse_flags(argv: list[str]) -> list[str]:
    try:
      return flags.FLAGS(argv)
    except flags.Error as error:
      flag, is_config, _ = str(error).partition(f': {_IN_CONFIG}')
      if not is_config:
        sys.exit(f'\nerror: {error}\n(--help shows the flags)')
      # ml_collections hands on a traceback as text, around the error itself.
      cause: BaseException | None = error
      while cause and _IN_CONFIG in str(cause):
        cause = cause.__context__
      raise ValueError(f'{flag.removeprefix("flag ")}: {cause}') from error
    except AttributeError as error:
      # ml_collections hands on the text of a KeyError, quotes and escapes included.
      suggestion = re.search('Did you mean "(.*)" instead of "(.*)"', str(error))
      if not suggestion:
        raise ValueError(f'the config has no field {error}') from error
      right, wrong = suggestion.groups()
      raise ValueError(
        f'the config has no field {wrong!r}: did you mean {right!r}?'
      ) from error

  prepare_process()
  try:
    app.run(main, flags_parser=parse_flags)
  except (ValueError, OSError, FloatingPointError) as error:
    if _TRACEBACK in os.environ:
      raise
    sys.exit(f'\nerror: {error}\n({_TRACEBACK}=1 in the environment shows where)')
  except KeyboardInterrupt as stop:
    print(str(stop) or 'Stopped.', file=sys.stderr)
    sys.exit(getattr(stop, 'exit_code', 130))


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
    environment['XLA_FLAGS'] = f'{flags} {_XLA_FLAG}'.strip()
  os.execve(sys.executable, [sys.executable, *sys.argv], environment)
