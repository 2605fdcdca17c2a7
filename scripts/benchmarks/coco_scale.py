r"""Prepares and reads a data set of COCO's size, made of a few photographs.

  python -m scripts.benchmarks.coco_scale --photographs=FOLDER --folder=EMPTY_FOLDER

FOLDER is in COCO form with COCO's 80 categories, such as coco128. Its training images
and annotations, under new ids, fill zips as COCO gives them: by default as many as COCO
has, 20 GB, and as much again for what is prepared from them. Without --folder that is a
temporary one, and removed at the end.

Prints one JSON line for each part, times in seconds and the most memory in MB:
{parts}
"""

import tempfile
from pathlib import Path

from absl import app, flags

from scripts.benchmarks import coco_scale_parts, machine

_PHOTOGRAPHS = flags.DEFINE_string(
  'photographs', None, 'A folder in COCO form; its training images are used.'
)
_FOLDER = flags.DEFINE_string(
  'folder', None, 'Where all is kept; by default it is removed.'
)
_TRAIN = flags.DEFINE_integer('num_train', 118_287, 'Training images.', 1)
_VALIDATION = flags.DEFINE_integer('num_validation', 5_000, 'Evaluation images.', 1)
_OUT = flags.DEFINE_string('out', None, 'File to add the lines to, too.')

__doc__ = (__doc__ or '').format(
  parts='\n'.join(
    f'  {name:9} {(part.__doc__ or "").splitlines()[0]}'
    for name, part in coco_scale_parts.PARTS.items()
  )
)


def main(argv: list[str]) -> None:
  """Checks the flags, rehearses and prints."""
  if argv[1:]:
    raise app.UsageError(f'unknown arguments: {argv[1:]}')
  photographs = Path(_PHOTOGRAPHS.value)
  if not (photographs / 'annotations' / 'instances_train.json').exists():
    raise app.UsageError(f'--photographs={photographs} is no folder in COCO form')
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
