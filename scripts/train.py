"""Trains a detector; started again with the same folder, it goes on.

  python scripts/train.py --config=configs/demo_shapes.py --workdir=runs/demo

Any value of the config can be given on the command line: --config.epochs=30,
--config.model.num_classes=3. The folder gets checkpoints, metrics.jsonl, eval/ and
report.html.

A finished run goes on for more epochs with --config.epochs= and --extend=:

  keep_rate     the learning rate of its last step stays
  new_schedule  the rate that the config's schedule now has from that step on; fields
                of config.schedule may differ from the run's

Its config.json says so in schedule.extensions. The same command goes on with it.
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
  'extend', None, ['keep_rate', 'new_schedule'], 'Go on with a finished run, see above.'
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
