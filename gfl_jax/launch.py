"""Settings that a process needs before jax and TensorFlow start."""

import logging
import os
import pathlib
import sys

# Eigen's convolutions instead of YNN's; and huge pages for the large temporaries that
# XLA's CPU backend takes afresh at each step. `scripts/benchmark.py` measures both.
_XLA_FLAG = '--xla_cpu_experimental_ynn_fusion_type='
_TUNABLE = 'glibc.malloc.hugetlb=1'
_MARK = 'GFL_JAX_LAUNCHED'


def use_compilation_cache(workdir: str | os.PathLike) -> None:
  """Keeps compiled programs beside the run's folder, for its restarts and its kin."""
  import jax

  folder = pathlib.Path(workdir).absolute().parent / '.compilation_cache'
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
  environment.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')  # no notes on missing GPUs
  environment.setdefault('GLIBC_TUNABLES', _TUNABLE)
  if version('jaxlib').startswith(('0.10.', '0.12.')):
    flags = environment.get('XLA_FLAGS', '')
    environment['XLA_FLAGS'] = f'{flags} {_XLA_FLAG}'.strip()
  os.execve(sys.executable, [sys.executable, *sys.argv], environment)
