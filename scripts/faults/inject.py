"""Fault injection: does to training what goes wrong in practice, and checks the result.

  python -m scripts.faults.inject
  python -m scripts.faults.inject kills damage --out=FILE.jsonl
  python -m scripts.faults.inject --summary=results/faults/intel_2_cores.jsonl

Rows (all of them by default):
{rows}

Prints one JSON line for each row, with `tries`, `held` (how often the goal was met),
`figures`, `failures` and `met`. The processes are scripts/train.py on a small detector.
`--summary` prints the lines of a file as a markdown table, with the faults that tests
cover.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from absl import app, flags, logging

from gfl_jax.errors import UserError

_OUT = flags.DEFINE_string('out', None, 'File to add the lines to, too.')
_SUMMARY = flags.DEFINE_string('summary', None, 'A file of lines to print as a table.')
_FOLDER = flags.DEFINE_string(
  'folder', None, 'Folder for the runs; by default they are removed.'
)


class Row(NamedTuple):
  """A fault and its goal.

  Attributes:
    what: what is done.
    goal: what should happen.
    fault: 'module:function' that does it, or None if tests alone do.
    tries: argument of the function, if it takes one.
    tests: tests that cover the fault.
  """

  what: str
  goal: str
  fault: str | None = None
  tries: int | None = None
  tests: str = ''


_LOOP, _HOSTS = 'tests/training/test_loop.py', 'tests/multihost/test_hosts.py'
ROWS = {
  'kills': Row(
    'SIGKILL in training, during asynchronous saves and between them',
    'every run continues from its newest stored step and ends with the same arrays and'
    ' log as the undisturbed one; no temporary folder is left',
    fault='processes:kills',
    tries=20,
    tests='tests/checkpointing/test_faults.py',
  ),
  'resume': Row(
    'a run on 8 virtual devices stopped at three random steps',
    'bit-equal parameters, optimizer, average and evaluation',
    fault='processes:resumes',
    tests=f'{_LOOP}; two processes: {_HOSTS}',
  ),
  'again': Row('the same command twice', 'bit-equal arrays and log', 'processes:again'),
  'stops': Row(
    'SIGTERM in training',
    'the current step is stored, the process ends in 10 s with status 143, and the next'
    ' start continues to the undisturbed end',
    fault='processes:stops',
    tries=20,
    tests=f'{_LOOP}; several processes: {_HOSTS}',
  ),
  'full_disk': Row(
    'the disk of the checkpoints is filled to the last byte and freed',
    'the save fails with a warning, the step before stays, later saves succeed, the end'
    ' is bit-equal',
    fault='processes:full_disk',
    tries=10,
    tests='tests/checkpointing/test_faults.py',
  ),
  'damage': Row(
    'each file of a checkpoint with one bit flipped, cut in half, or deleted',
    'the step before is restored, or the newest is bit-equal nevertheless',
    fault='checkpoints:damage',
    tries=216,
    tests='tests/checkpointing/test_faults.py',
  ),
  'wrong_states': Row(
    'restored into other names, shapes, dtypes, class counts and backbones',
    'refused with the name of a leaf',
    'checkpoints:wrong_states',
    tests='tests/checkpointing/test_manager.py',
  ),
  'pause': Row(
    'saves of a state as large as that of R-50 with momentum',
    'the loop continues before half of the time of a save is over',
    fault='checkpoints:pause',
  ),
  'not_there': Row(
    'no checkpoint, or a folder that cannot be listed',
    'evaluation and training end with an error, never with fresh weights',
    'processes:not_there',
  ),
  'peers': Row(
    'the first or last of 2 or 4 processes is killed, stopped or stuck',
    'every survivor ends with an error in 30 s',
    fault='peers:peers',
    tests=_HOSTS,
  ),
  'restarts': Row(
    'each of two training processes is killed once, under scripts/keep_training.sh',
    'both start again and end bit-equal to the undisturbed run',
    'peers:restarts',
  ),
  'one_full_disk': Row(
    'one of two processes cannot write while a step is saved',
    'both name the process and the reason, and continue',
    fault='peers:one_full_disk',
  ),
  'shards': Row(
    'evaluation of 1, 7, 8, 9, 17 images on 1, 2, 4 processes',
    'the same 12 numbers, each image once',
    tests=_HOSTS,
  ),
  'images': Row(
    'bad image files',
    'an error that names the images, or the pixels of the file',
    tests='tests/data',
  ),
  'annotations': Row(
    'bad annotations',
    'counted or refused, never nan',
    tests='tests/data; tests/training/test_objective.py',
  ),
  'not_finite': Row(
    'a learning rate that makes the loss nan',
    'stops at that step and names the images; stored states are finite. (Training does'
    ' not skip such steps: that would change the recipe unnoticed)',
    'processes:not_finite',
    tests=_LOOP,
  ),
  'refusals': Row(
    'a class count, a field and a batch size that are wrong',
    'refused before anything is compiled',
    'processes:refusals',
  ),
  'memory': Row(
    'the memory of the process over 20 epochs',
    'no growth',
    tests='scripts/benchmark.py input',
  ),
  'archives': Row('unsafe archives', 'refused', tests='tests/data'),
  'devices': Row(
    '8 virtual devices, 1 device, 2 processes',
    'equal parameters to 1e-5',
    tests=f'tests/training/test_step.py; {_HOSTS}',
  ),
  'numbers': Row(
    'losses, ATSS and NMS against NumPy, metrics against pycocotools',
    'equal',
    tests='tests/ops; tests/evaluation/test_coco_metrics.py',
  ),
}
__doc__ = (__doc__ or '').format(
  rows='\n'.join(f'  {name:13} {row.what}' for name, row in ROWS.items() if row.fault)
)


def main(argv: list[str]) -> None:
  """Checks the words, runs their rows and prints."""
  if _SUMMARY.value:
    print(summary(Path(_SUMMARY.value)))
    return
  injected = [name for name, row in ROWS.items() if row.fault]
  if unknown := set(argv[1:]) - set(injected):
    raise app.UsageError(f'no row {sorted(unknown)}; there are: {", ".join(injected)}')
  logging.set_verbosity(logging.ERROR)
  from scripts.benchmarks import machine
  from scripts.faults.runs import Runs

  with tempfile.TemporaryDirectory(prefix='faults_') as folder:
    folder = Path(_FOLDER.value or folder)
    folder.mkdir(parents=True, exist_ok=True)
    machine.print_line({'row': 'machine', **machine.facts()}, _OUT.value)
    runs = Runs(folder)
    for name in argv[1:] or injected:
      row = ROWS[name]
      function = _function(row.fault)
      result = function(runs, row.tries) if row.tries else function(runs)
      met = result['held'] == result['tries']
      line = {'row': name, 'what': row.what, **result, 'goal': row.goal, 'met': met}
      machine.print_line(line, _OUT.value)


def _function(fault: str | None) -> Callable[..., dict[str, Any]]:
  import importlib

  module, function = str(fault).split(':')
  return getattr(importlib.import_module(f'scripts.faults.{module}'), function)


def summary(path: Path) -> str:
  """A markdown table of all rows; of a row that was run twice, the last."""
  from gfl_jax import files

  lines = {line['row']: line for line in files.read_json_lines(path)}
  if not lines:
    raise UserError(f'{path} holds no lines of this script')
  table = ['| row | what is done | goal | held | figures | tests |', '| - ' * 6 + '|']
  for name, row in ROWS.items():
    line = lines.get(name, {})
    held = f'{line["held"]} of {line["tries"]}' if line else 'tests'
    figures = '; '.join(f'{k}: {v}' for k, v in line.get('figures', {}).items())
    table.append(
      f'| {name} | {row.what} | {row.goal} | {held} | {figures} | {row.tests} |'
    )
  return '\n'.join(table)


if __name__ == '__main__':
  from gfl_jax import launch

  launch.run(main)
