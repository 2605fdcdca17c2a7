"""Trains a detector; started again with the same folder, it goes on.

  python scripts/train.py --config=configs/demo_shapes.py --workdir=runs/demo

Any value of the config can be given on the command line: --config.epochs=30,
--config.model.num_classes=3. The folder gets checkpoints, metrics.jsonl, eval/ and
report.html.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from absl import app, flags
from ml_collections import config_flags

from gfl_jax import launch

_CONFIG = config_flags.DEFINE_config_file('config', None, 'File of the config.')
_WORKDIR = flags.DEFINE_string('workdir', None, "The run's folder, made if missing.")


def main(argv: list[str]) -> None:
  """Checks the flags and trains."""
  if argv[1:]:
    raise app.UsageError(f'unknown arguments: {argv[1:]}')
  from gfl_jax.training import loop

  launch.use_compilation_cache(_WORKDIR.value)
  loop.train(_CONFIG.value, _WORKDIR.value)


if __name__ == '__main__':
  launch.require_flags(['config', 'workdir'])
  launch.run(main, several_processes=True)
