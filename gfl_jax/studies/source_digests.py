"""Which code made a run of a study: the sources that can change a number, by content.

Runs that other sources made are not mixed with those of today's. The digests are of the
files' bytes, whatever their line ends: the same on every machine and Python.
"""

import ast
import functools
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

_PACKAGE = Path(__file__).parents[1]
# The training loop imports these, but they change no number: they show numbers, use a
# trained detector, check a config, or keep a run alive and its files whole.
_NO_NUMBERS = frozenset(
  (
    *('reports', 'multihost', 'checkpointing', 'inference'),
    *('__init__.py', 'errors.py', 'files.py', 'data/console.py'),
    *('training/config_checks.py', 'training/metrics_log.py', 'training/run_folder.py'),
    *('weights/trees.py', 'weights/trained.py'),
  )
)
Code = Mapping[str, str] | str  # the second: of records of before, one digest of all


@functools.cache
def current() -> dict[str, str]:
  """A digest of each source that can change a run's numbers, 12 hexadecimal digits.

  They are those of this package that the training loop imports, directly or not, but
  for `_NO_NUMBERS`. Not covered: configs, by whose values a run is found, and the
  machine, Python and the libraries, which study.json counts as `environments`.
  """
  return {
    file.relative_to(_PACKAGE).as_posix(): _sha256(_content(file))
    for file in sorted(_imported(_PACKAGE / 'training' / 'loop.py'))
  }


def digest(code: Code) -> str:
  """One digest for all, as study.json has it."""
  if isinstance(code, str):
    return code
  return _sha256(json.dumps(dict(code), sort_keys=True).encode())


def difference(code: Code) -> str:
  """What differs between the code of a record and today's, in words; '' if nothing."""
  if isinstance(code, str):
    return (
      f'its record has one digest of all files together ({code}), as older versions'
      ' wrote it, which cannot tell which file differs'
    )
  now = current()
  names = sorted(n for n in code.keys() | now.keys() if code.get(n) != now.get(n))
  listed = ', '.join(names[:10]) + (', ...' if len(names) > 10 else '')
  return f'{len(names)} of its files differ: {listed}' if names else ''


def _imported(start: Path) -> set[Path]:
  """A file of the package, and all of the package that it needs for its numbers."""
  found, queue = set(), [start]
  while queue:
    file = queue.pop()
    if file not in found and not _NO_NUMBERS.intersection(_names(file)):
      found.add(file)
      queue += _imports(file)
  return found


def _imports(file: Path) -> Iterator[Path]:
  for node in ast.walk(ast.parse(_content(file))):
    if isinstance(node, ast.ImportFrom) and (node.module or '').startswith('gfl_jax'):
      names = [node.module, *(f'{node.module}.{alias.name}' for alias in node.names)]
      paths = (_PACKAGE.parent.joinpath(*str(name).split('.')) for name in names)
      both = ((path.with_suffix('.py'), path / '__init__.py') for path in paths)
      yield from (path for pair in both for path in pair if path.exists())


def _names(file: Path) -> set[str]:
  """Of a file and of the folders that it is in."""
  relative = file.relative_to(_PACKAGE)
  return {path.as_posix() for path in (relative, *relative.parents)}


def _content(file: Path) -> bytes:
  return file.read_bytes().replace(b'\r\n', b'\n')


def _sha256(content: bytes) -> str:
  return hashlib.sha256(content).hexdigest()[:12]
