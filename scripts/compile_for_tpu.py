r"""Compiles a config's training and evaluation step for TPUs, on a machine without any.

  pip install -e '.[tpu]'
  python scripts/compile_for_tpu.py --config=configs/gfl_r50_fpn_1x_coco.py \
    --topology=v5p:4x8x8 --images_per_chip=8 --config.model.dtype=bfloat16

  python scripts/compile_for_tpu.py --table=results/tpu/compiled.jsonl

Prints the memory that each chip needs, the time that the compiler expects a step to
take, and where it goes; the exit code is 1 if a program does not fit. The programs are
those of training and evaluation, for the config's canvas. Nothing is allocated and no
data is read. Portrait images have a transposed canvas and a program of their own:
--config.data.canvas='(1344, 800)' compiles it. Compiling R-50 takes minutes and 4 GB.

All times are predictions from the compiler's own estimates. These exist for nearly all
computation, but not for gathers, scatters, sorts and copies under way: see
results/tpu/README.md.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import json
import os

from absl import app, flags
from ml_collections import config_flags

from gfl_jax import files, launch
from gfl_jax.errors import MissingFileError, UserError

_CONFIG = config_flags.DEFINE_config_file('config', None, 'File of the config.')
_TOPOLOGY = flags.DEFINE_string('topology', None, 'The slice, such as v5e:16x16.')
_IMAGES = flags.DEFINE_integer(
  'images_per_chip', None, 'Sets batch_size for all chips together.', 1
)
_PROGRAMS = flags.DEFINE_list('programs', ['train', 'evaluate'], 'What to compile.')
_OUT = flags.DEFINE_string('out', None, 'File that gets a JSON line for each program.')
_TABLE = flags.DEFINE_string(
  'table', None, 'Compile nothing; print this --out file as a table.'
)
_OPTIONS = flags.DEFINE_multi_string(
  'option',
  [],
  'NAME=VALUE for the compiler; for training set LIBTPU_INIT_ARGS=--NAME=VALUE.',
)
_TEXT = flags.DEFINE_string(
  'text', None, 'File that gets the compiled program as text.'
)


def main(argv: list[str]) -> None:
  """Checks the flags, compiles, prints."""
  if argv[1:]:
    raise app.UsageError(f'unknown arguments: {argv[1:]}')
  if _TABLE.value:
    from scripts.tpu import tables

    if not os.path.exists(_TABLE.value):
      raise MissingFileError(f'--table={_TABLE.value} does not exist')
    lines = files.read_json_lines(_TABLE.value)
    if not lines:
      raise UserError(f'--table={_TABLE.value} has no line: give a file made by --out')
    print(tables.table(lines))
    return
  if _CONFIG.value is None or _TOPOLOGY.value is None:
    raise app.UsageError('give both --config and --topology')
  if unknown := set(_PROGRAMS.value) - {'train', 'evaluate'}:
    raise app.UsageError(
      f'--programs={",".join(unknown)}: give train, evaluate or both'
    )
  if _TEXT.value and len(_PROGRAMS.value) != 1:
    raise app.UsageError(
      '--text holds one program: give --programs=train or --programs=evaluate'
    )
  os.environ['JAX_PLATFORMS'] = 'cpu'
  from scripts.tpu import chips, compiled, tables

  where = chips.describe(_TOPOLOGY.value)
  config = _CONFIG.value
  if _IMAGES.value:
    config.batch_size = _IMAGES.value * len(where.devices)
  options = compiled.parsed_options(_OPTIONS.value)
  does_not_fit = []
  for name in _PROGRAMS.value:
    print(f'Compiling {name} for {where.name} (minutes) ...', file=sys.stderr)
    line, text = compiled.compiled(name, config, where, options)
    print(tables.report(line), flush=True)
    if _OUT.value:
      with open(_OUT.value, 'a') as file:
        file.write(json.dumps(line) + '\n')
    if _TEXT.value and text:
      with open(_TEXT.value, 'w') as file:
        file.write(text)
    if not line['memory']['fits']:
      does_not_fit.append(f'{name}: {tables.shortage(line)}')
  if does_not_fit:
    raise UserError(
      f'does not fit on {where.name}: {"; ".join(does_not_fit)}. Take fewer images per'
      ' chip, --config.model.dtype=bfloat16, or --config.model.remat="(\'head\',)"'
    )


if __name__ == '__main__':
  launch.run(main)
