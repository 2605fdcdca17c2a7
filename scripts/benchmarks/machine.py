"""Shared by scripts that measure: JSON lines, and facts about the machine."""

import json
import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

from gfl_jax.data import records


def print_line(line: dict[str, Any], out: str | None) -> None:
  """Prints a JSON line, and appends it to the file `out` if given."""
  text = json.dumps(line)
  print(text, flush=True)
  if out:
    with open(out, 'a') as file:
      file.write(text + '\n')


def resident_mb() -> float:
  """Resident memory of this process, in MB."""
  pages = int(Path('/proc/self/statm').read_text().split()[1])
  return round(pages * os.sysconf('SC_PAGE_SIZE') / 1e6, 1)


def facts() -> dict[str, Any]:
  """Processor, memory, load and versions."""
  memory = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
  return {
    'cpu': _cpu_name(),
    'cores': records.num_cores(),
    'memory_gib': round(memory / 2**30, 1),
    'load': round(os.getloadavg()[0], 1),
    'system': platform.platform(),
    'python': platform.python_version(),
    **{name: version(name) for name in ('jax', 'orbax-checkpoint')},
  }


def _cpu_name() -> str:
  known = Path('/proc/cpuinfo')
  lines = known.read_text().splitlines() if known.exists() else []
  of = lambda key: [x.split(':')[1].strip() for x in lines if x.startswith(key)][:1]
  # Family and model too, because virtual machines often hide the name.
  names = [
    *of('model name'),
    *(f'{key.strip()} {v}' for key in ('cpu family', 'model\t') for v in of(key)),
  ]
  return ', '.join(names) or platform.processor()
