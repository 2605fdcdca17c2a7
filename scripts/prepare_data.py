r"""Prepares a config's data set, and checks what is prepared.

  python scripts/prepare_data.py --config=configs/gfl_r50_fpn_1x_coco.py \
    --config.data.path=FOLDER
  python scripts/train.py --config=configs/gfl_r50_fpn_1x_coco.py --workdir=runs/r50_1x

For COCO, FOLDER holds what its site gives, zipped or unpacked: train2017, val2017 and
annotations_trainval2017 (and, if wanted, test2017 and image_info_test2017). Zips are
read in place. For a `coco_folder`, it holds images/ and
annotations/instances_{train,val}.json. Every image is decoded once to check it. The
result lies under --config.data.data_dir in TFDS's form, COCO as
`tfds.builder('coco/2017', data_dir=...)` reads it. A preparation that was stopped goes
on where it was; of one that is done, the checksums in its SHA256SUMS are compared.
Training prepares what is missing by itself: this is for doing it before, once for all
hosts.

  python scripts/prepare_data.py --config=configs/bccd.py --out=datasets/bccd.npz \
    --config.data.path=FOLDER
  python scripts/train.py --config=configs/bccd.py --workdir=runs/bccd \
    --config.data.name=file --config.data.path=datasets/bccd.npz

With --out both splits are written, too, as one file that needs no TensorFlow: decoded,
at the config's largest short side, whole and not augmented.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import os

from absl import app, flags
from ml_collections import config_flags

from gfl_jax import launch

_CONFIG = config_flags.DEFINE_config_file('config', None, 'File of the config.')
_OUT = flags.DEFINE_string('out', None, 'A file of decoded images to write, .npz.')


def main(argv: list[str]) -> None:
  """Checks the flags, prepares and prints what there is."""
  if argv[1:]:
    raise app.UsageError(f'unknown arguments: {argv[1:]}')
  if _OUT.value is not None and not _OUT.value.endswith('.npz'):
    raise app.UsageError(f'--out={_OUT.value}: the name must end in .npz')
  config = _CONFIG.value.data
  if config.name == 'file':
    raise app.UsageError(f'{config.path} is such a file already: name a TFDS data set')
  from gfl_jax import data
  from gfl_jax.training import config_checks

  config_checks.check_config(_CONFIG.value)
  data.check_name(config)
  from gfl_jax.data import pipeline

  print(pipeline.prepare(config))
  if _OUT.value is None:
    config.cache = False  # nothing needs the decoded images
    dataset = pipeline.load(config)
  else:
    whole = pipeline.load_in_memory(config)
    dataset = whole.dataset(config)
    whole.save(_OUT.value)
    print(f'{_OUT.value}: {os.path.getsize(_OUT.value) / 2**20:.1f} MiB')
  print(f'{"classes":22} {len(dataset.class_names)}')
  print(f'{"training images":22} {dataset.num_train}')
  print(f'{"evaluation images":22} {dataset.num_eval}')
  for name, count in dataset.counters.items():
    print(f'{name.replace("_", " "):22} {count}')
  print(f'{"canvas covered":22} {dataset.canvas_covered:.1%}')


if __name__ == '__main__':
  launch.require_flags(['config'])
  launch.run(main)
