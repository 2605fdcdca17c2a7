"""Evaluates a checkpoint of a run and writes its report again.

  python scripts/evaluate.py --run=runs/demo --step=best

Prints the COCO metrics and the report's path; writes eval/ and report.html of the
run's folder.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from collections.abc import Mapping
from typing import Any

from absl import app, flags

from gfl_jax import launch

_RUN = flags.DEFINE_string('run', None, "The run's folder.")
_STEP = flags.DEFINE_string('step', 'newest', "'newest', 'best' or a number of steps.")


def main(argv: list[str]) -> None:
  """Checks the flags and evaluates."""
  if argv[1:]:
    raise app.UsageError(f'unknown arguments: {argv[1:]}')
  if _STEP.value not in ('newest', 'best') and not _STEP.value.isdigit():
    raise app.UsageError(f"--step={_STEP.value}: 'newest', 'best' or a number of steps")
  import jax

  from gfl_jax.training import loop

  launch.use_compilation_cache(_RUN.value)
  metrics = loop.evaluate(_RUN.value, _STEP.value)
  if jax.process_index() > 0:
    return
  parts = {'AP per class': 'per_class', 'Diagnostics': 'diagnostics'}
  tables = {title: metrics.pop(name) for title, name in parts.items()}
  _print_table(metrics)
  for title, table in tables.items():
    print(f'\n{title}')
    _print_table(table)
  print(f'\n{pathlib.Path(_RUN.value) / "report.html"}')


def _print_table(values: Mapping[str, Any]) -> None:
  width = max(map(len, values), default=0)
  for name, value in values.items():
    print(f'{name:{width}}', f'{value:.3f}' if isinstance(value, float) else value)


if __name__ == '__main__':
  launch.require_flags(['run'])
  launch.run(main, several_processes=True)
