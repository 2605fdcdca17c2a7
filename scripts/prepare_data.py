r"""Prepares a config's data set, and checks what is prepared.

  python scripts/prepare_data.py --config=configs/gfl_r50_fpn_1x_coco.py \
    --config.data.path=FOLDER
  python scripts/train.py --config=configs/gfl_r50_fpn_1x_coco.py --workdir=runs/r50_1x

For COCO, FOLDER holds the files of its site, zipped or unpacked: train2017, val2017 and
annotations_trainval2017 (optional: test2017 and image_info_test2017). Zips are not
unpacked. For a `coco_folder`, it holds images/ and
annotations/instances_{train,val}.json. Every image is decoded once to check it. The
result lies under --config.data.data_dir in TFDS's form;
`tfds.builder('coco/2017', data_dir=...)` reads COCO's. The same command continues an
interrupted preparation, and compares the checksums of a finished one with its
SHA256SUMS. Training itself prepares missing data: this command does it beforehand, once
for all hosts.

  python scripts/prepare_data.py --config=configs/bccd.py --out=datasets/bccd.npz \
    --config.data.path=FOLDER
  python scripts/train.py --config=configs/bccd.py --workdir=runs/bccd \
    --config.data.name=file --config.data.path=datasets/bccd.npz

--out also writes both splits to one file that is read without TensorFlow: decoded,
resized to the config's largest short side, not cropped and not augmented.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import os

from absl import app, flags
from ml_collections import config_flags

from gfl_jax import launch

_CONFIG = config_flags.DEFINE_config_file('config', None, 'File of the config.')
_OUT = flags.DEFINE_string('out', None, 'File FILE.npz that gets the decoded images.')


def main(argv: list[str]) -> None:
  """Checks the flags, prepares the data and prints their numbers."""
  if argv[1:]:
    raise app.UsageError(f'unknown arguments: {argv[1:]}')
  if _OUT.value is not None and not _OUT.value.endswith('.npz'):
    raise app.UsageError(f'--out={_OUT.value}: give a name that ends in .npz')
  config = _CONFIG.value.data
  if config.name == 'file':
    raise app.UsageError(
      f'--config.data.path={config.path} is prepared already: it is a file of --out'
    )
  from gfl_jax.training import config_checks

  config_checks.check_config(_CONFIG.value)
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
