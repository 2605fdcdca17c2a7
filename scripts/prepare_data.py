r"""Writes a config's data set, decoded, as one file that needs no TensorFlow.

  python scripts/prepare_data.py --config=configs/bccd.py --out=datasets/bccd.npz \
    --config.data.path=FOLDER
  python scripts/train.py --config=configs/bccd.py --workdir=runs/bccd \
    --config.data.name=file --config.data.path=datasets/bccd.npz

The file holds both splits at the config's largest short side, whole and not augmented.
"""

import os

from absl import app, flags
from ml_collections import config_flags

from gfl_jax import launch

_CONFIG = config_flags.DEFINE_config_file('config', None, 'File of the config.')
_OUT = flags.DEFINE_string('out', None, 'The file to write, .npz.')


def main(argv: list[str]) -> None:
  """Checks the flags, decodes, writes and prints what there is."""
  if argv[1:]:
    raise app.UsageError(f'unknown arguments: {argv[1:]}')
  if not _OUT.value.endswith('.npz'):
    raise app.UsageError(f'--out={_OUT.value}: the name must end in .npz')
  config = _CONFIG.value.data
  if config.name == 'file':
    raise app.UsageError(f'{config.path} is such a file already: name a TFDS data set')
  from gfl_jax.data import pipeline

  whole = pipeline.load_in_memory(config)
  dataset = whole.dataset(config)
  whole.save(_OUT.value)
  print(f'{_OUT.value}: {os.path.getsize(_OUT.value) / 2**20:.1f} MiB')
  print(f'{"classes":22} {len(dataset.class_names)}')
  print(f'{"training images":22} {dataset.num_train}')
  print(f'{"evaluation images":22} {dataset.num_eval}')
  for name, count in dataset.counters.items():
    print(f'{name.replace("_", " "):22} {count}')


if __name__ == '__main__':
  flags.mark_flags_as_required(['config', 'out'])
  launch.run(main)
