"""Trains a detector; the same command continues an interrupted run.

  python scripts/train.py --config=configs/demo_shapes.py --workdir=runs/demo

The command line can set any value of the config, such as --config.epochs=30. The folder
gets checkpoints, metrics.jsonl, eval/ and report.html.

To train a finished run for more epochs, give a larger --config.epochs and --extend:
  keep_rate     the added epochs have the learning rate of the run's last step
  new_schedule  they have the rate of config.schedule, which may differ from the run's
The run's config.json records it in schedule.extensions.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from absl import app, flags
from ml_collections import config_flags

from gfl_jax import launch

_CONFIG = config_flags.DEFINE_config_file('config', None, 'File of the config.')
_WORKDIR = flags.DEFINE_string('workdir', None, "The run's folder, made if missing.")
_EXTEND = flags.DEFINE_enum(
  'extend', None, ['keep_rate', 'new_schedule'], 'Continues a finished run, see above.'
)


def main(argv: list[str]) -> None:
  """Checks the flags and trains."""
  if argv[1:]:
    raise app.UsageError(f'unknown arguments: {argv[1:]}')
  from gfl_jax.training import extension, loop

  launch.use_compilation_cache(_WORKDIR.value)
  config = _CONFIG.value
  if _EXTEND.value:
    config = extension.extended(config, _WORKDIR.value, _EXTEND.value)
  loop.train(config, _WORKDIR.value)


if __name__ == '__main__':
  launch.require_flags(['config', 'workdir'])
  launch.run(main, several_processes=True)
