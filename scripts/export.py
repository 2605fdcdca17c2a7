"""Exports the detector of a run, and checks that the export gives the same detections.

  python scripts/export.py --run=runs/demo --format=stablehlo --out=exports/demo

Formats:
  params     the parameters in one safetensors file, with config and class names
  stablehlo  programs for cpu, cuda and tpu, from images to detections, for any batch
             size; they run with jax alone
  onnx       the same for onnxruntime; needs the extra: pip install -e '.[onnx]'

Programs are compared with the run on its evaluation images, or on --images. The folder
--out gets a manifest.json that describes inputs and outputs.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from absl import app, flags

from gfl_jax import launch

_RUN = flags.DEFINE_string('run', None, "The run's folder.")
_FORMAT = flags.DEFINE_enum(
  'format', None, ['params', 'stablehlo', 'onnx'], 'What to export.'
)
_OUT = flags.DEFINE_string('out', None, 'Folder of the export.')
_STEP = flags.DEFINE_string('step', 'newest', "'newest', 'best' or a step number.")
_WEIGHTS = flags.DEFINE_enum(
  'weights',
  'ema',
  ['ema', 'raw'],
  "'ema': the running average of the parameters, if the run has one.",
)
_IMAGES = flags.DEFINE_list(
  'images', [], 'Files, folders or quoted patterns to compare on, comma-separated.'
)


def main(argv: list[str]) -> None:
  """Loads the run, exports it and prints how it compares."""
  if argv[1:]:
    raise app.UsageError(f'unknown arguments: {argv[1:]}')
  from gfl_jax.inference import loading, verified_export

  launch.use_compilation_cache(_RUN.value)
  trained = loading.load_run(_RUN.value, _STEP.value, _WEIGHTS.value)
  result = verified_export.write(
    trained, _FORMAT.value, _OUT.value, images=_IMAGES.value
  )
  folder = pathlib.Path(_OUT.value)
  size = sum(path.stat().st_size for path in folder.iterdir())
  print(f'{folder}: {_FORMAT.value}, {size / 2**20:.1f} MiB')
  for name, value in {**trained.origin, **result}.items():
    print(f'{name.replace("_", " "):20} {value}')


if __name__ == '__main__':
  launch.require_flags(['run', 'format', 'out'])
  launch.run(main)
