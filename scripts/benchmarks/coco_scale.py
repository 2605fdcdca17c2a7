r"""COCO-scale dry run: prepares and reads a data set of COCO's size.

  python -m scripts.benchmarks.coco_scale --photographs=FOLDER --folder=EMPTY_FOLDER

FOLDER is in COCO form with COCO's 80 categories, such as coco128. Its training images
and annotations are repeated under new ids until zips like COCO's are full: by default
as many images as COCO has, 20 GB, and another 20 GB for the prepared data. Without
--folder, all of it is removed at the end.

Prints one JSON line for each part, with times in seconds and the most memory in MB:
{parts}
"""

import tempfile
from pathlib import Path

from absl import app, flags

from scripts.benchmarks import coco_scale_parts, machine

_PHOTOGRAPHS = flags.DEFINE_string(
  'photographs', None, 'A folder in COCO form, whose training images are used.'
)
_FOLDER = flags.DEFINE_string(
  'folder', None, 'Folder of all files; by default a temporary one.'
)
_TRAIN = flags.DEFINE_integer('num_train', 118_287, 'Training images.', 1)
_VALIDATION = flags.DEFINE_integer('num_validation', 5_000, 'Evaluation images.', 1)
_OUT = flags.DEFINE_string('out', None, 'File that gets the lines, too.')

__doc__ = (__doc__ or '').format(
  parts='\n'.join(
    f'  {name:9} {(part.__doc__ or "").splitlines()[0]}'
    for name, part in coco_scale_parts.PARTS.items()
  )
)


def main(argv: list[str]) -> None:
  """Checks the flags, runs the parts and prints their lines."""
  if argv[1:]:
    raise app.UsageError(f'unknown arguments: {argv[1:]}')
  photographs = Path(_PHOTOGRAPHS.value)
  if not (photographs / 'annotations' / 'instances_train.json').exists():
    raise app.UsageError(
      f'--photographs={photographs} lacks annotations/instances_train.json'
    )
  counts = {'train2017': _TRAIN.value, 'val2017': _VALIDATION.value}
  with tempfile.TemporaryDirectory(prefix='coco_scale_') as temporary:
    folder = Path(_FOLDER.value or temporary).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    dry_run = coco_scale_parts.DryRun(photographs, folder, counts)
    machine.print_line({'part': 'machine', **machine.facts()}, _OUT.value)
    for line in coco_scale_parts.run_parts(dry_run):
      machine.print_line(line, _OUT.value)


if __name__ == '__main__':
  from gfl_jax import launch

  launch.require_flags(['photographs'])
  launch.run(main)
