"""What a run was made with: machine, versions, revision of the source."""

import importlib.metadata
import os
import pathlib
import platform
import subprocess
import sys
from typing import Any

import jax

from gfl_jax import __version__


def describe() -> dict[str, Any]:
  """The content of a run's env.json."""
  device, *_ = jax.devices()
  packages = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy')
  versions = {name: importlib.metadata.version(name) for name in packages}
  return {
    'command': ' '.join(sys.argv),
    'python': platform.python_version(),
    'platform': platform.platform(),
    'cpu_count': os.cpu_count(),
    'devices': f'{jax.device_count()} x {device.device_kind} ({device.platform})',
    'processes': jax.process_count(),
    'versions': versions | {'gfl-jax': __version__},
    'git': git_revision(),
  }


def git_revision() -> str:
  """Revision of this source, with '+changes' if it differs from what is committed."""
  here = pathlib.Path(__file__).parent
  run = lambda *args: subprocess.run(
    ['git', *args], cwd=here, capture_output=True, text=True, check=True
  ).stdout.strip()
  try:
    # An installed package may lie in the repository of another project.
    run('ls-files', '--error-unmatch', __file__)
    return run('rev-parse', 'HEAD') + ('+changes' if run('status', '-s') else '')
  except (OSError, subprocess.CalledProcessError):
    return 'unknown (no git checkout)'
