"""Which code made a run of a study: digests of the sources that can change a number.

A study does not mix runs of different sources. The digests are of the files' content
without their kind of line ends, so they are the same on every machine and Python.
"""

import functools
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

_PACKAGE = Path(__file__).parents[1]
# These change no number: they show numbers, use a trained detector, check a config, or
# handle processes and files.
_NO_NUMBERS = frozenset(
  (
    *('reports', 'multihost', 'checkpointing', 'studies', 'export', 'inference'),
    *('__init__.py', 'errors.py', 'files.py', 'launch.py', 'private_apis.py'),
    *('training/config_checks.py', 'training/evaluate.py', 'training/extension.py'),
    *('data/terminal.py', 'training/environment.py', 'training/importing.py'),
    *('training/metrics_log.py', 'training/run_folder.py', 'weights/trained.py'),
    'weights/trees.py',
  )
)
Code = Mapping[str, str] | str  # str: one digest of all files, in older records


@functools.cache
def current() -> dict[str, str]:
  """A digest of each source that can change a run's numbers, 12 hexadecimal digits.

  These are the files of this package without `_NO_NUMBERS`. Configs are not covered,
  because a run is found by their values; nor are machine, Python and libraries, which
  study.json lists as `environments`.
  """
  found = {}
  for file in sorted(_PACKAGE.rglob('*.py')):
    name = file.relative_to(_PACKAGE)
    if not _NO_NUMBERS & {path.as_posix() for path in (name, *name.parents)}:
      found[name.as_posix()] = _sha256(file.read_bytes().replace(b'\r\n', b'\n'))
  return found


def digest(code: Code) -> str:
  """One digest of all files, as study.json holds it."""
  if isinstance(code, str):
    return code
  return _sha256(json.dumps(dict(code), sort_keys=True).encode())


def difference(code: Code) -> str:
  """In words, how the code of a record differs from the present; '' if it does not."""
  if isinstance(code, str):
    return f'its record has one digest ({code}) of all files, not one of each'
  now = current()
  names = sorted(n for n in code.keys() | now.keys() if code.get(n) != now.get(n))
  listed = ', '.join(names[:10]) + (', ...' if len(names) > 10 else '')
  return f'{len(names)} of its files differ: {listed}' if names else ''


def _sha256(content: bytes) -> str:
  return hashlib.sha256(content).hexdigest()[:12]
