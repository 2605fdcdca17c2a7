"""Evaluates a checkpoint of a run: prints COCO metrics and writes a report.

  python scripts/evaluate.py --run=runs/demo --step=best

RUN/evaluations, or --out, gets detections in COCO's form, metrics, samples and
report.html. The run itself is not changed and may still be training. If the folder
cannot be written, the metrics are only printed.

--data_path and --data_dir say where the data are now. --data_path may also be other
data with the same classes in the same order, such as a test set: a file of
scripts/prepare_data.py, or a folder with images/ and
annotations/instances_{train,val}.json, of which the images of val are evaluated.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from collections.abc import Mapping
from typing import Any

from absl import app, flags

from gfl_jax import launch

_RUN = flags.DEFINE_string('run', None, "The run's folder.")
_STEP = flags.DEFINE_string('step', 'newest', "'newest', 'best' or a step number.")
_DATA_PATH = flags.DEFINE_string('data_path', '', "Replaces the run's data.path.")
_DATA_DIR = flags.DEFINE_string('data_dir', '', "Replaces the run's data.data_dir.")
_OUT = flags.DEFINE_string('out', '', 'Folder of the results, made if missing.')


def main(argv: list[str]) -> None:
  """Checks the flags and evaluates."""
  if argv[1:]:
    raise app.UsageError(f'unknown arguments: {argv[1:]}')
  if _STEP.value not in ('newest', 'best') and not _STEP.value.isdigit():
    raise app.UsageError(
      f"--step={_STEP.value}: give 'newest', 'best' or a step number"
    )
  import jax

  from gfl_jax.training import evaluate

  launch.use_compilation_cache(_RUN.value)
  metrics = evaluate.evaluate_run(
    _RUN.value,
    _STEP.value,
    data_path=_DATA_PATH.value,
    data_dir=_DATA_DIR.value,
    out=_OUT.value,
  )
  if jax.process_index() > 0:
    return
  parts = {'AP per class': 'per_class', 'Diagnostics': 'diagnostics'}
  tables = {title: metrics.pop(name) for title, name in parts.items()}
  _print_table(metrics)
  for title, table in tables.items():
    print(f'\n{title}')
    _print_table(table)


def _print_table(values: Mapping[str, Any]) -> None:
  width = max(map(len, values), default=0)
  for name, value in values.items():
    print(f'{name:{width}}', f'{value:.3f}' if isinstance(value, float) else value)


if __name__ == '__main__':
  launch.require_flags(['run'])
  launch.run(main, several_processes=True)
