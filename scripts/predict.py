"""Finds objects in photographs with a trained detector, and draws them.

  python scripts/predict.py --model=runs/demo photos/ 'more/*.jpg' one.png --out=found

--model is a run's folder or an export. Images are files, folders (with all below them)
and quoted patterns. The folder --out gets

  pictures/        each image with its boxes, classes, scores and the spread of each
                   side: the band along it reaches one standard deviation
  detections.json  every box as COCO results, with edge_std (left, top, right, bottom)
  images.json      the image and category ids of it: what pycocotools' COCO reads, whose
                   loadRes then takes detections.json

An image that cannot be read is named, the others go on, and the exit code is 1. Broken
off, it writes the json of the pictures so far. Earlier pictures of other names stay.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import tqdm
from absl import flags

from gfl_jax import launch
from gfl_jax.errors import UserError

_MODEL = flags.DEFINE_string('model', None, 'Folder of a run or of an export.')
_OUT = flags.DEFINE_string('out', None, 'Folder of the results, made if missing.')
_BATCH_SIZE = flags.DEFINE_integer(
  'batch_size', 1, 'Images at a time; more than 1 pays on GPUs and TPUs.', lower_bound=1
)
_MIN_SCORE = flags.DEFINE_float(
  'min_score',
  0.3,
  'Least score of a box in the pictures; detections.json has all.',
  lower_bound=0.0,
  upper_bound=1.0,
)
_STEP = flags.DEFINE_string(
  'step', None, "Of a run: 'newest' (if not given), 'best' or a number of steps."
)
_WEIGHTS = flags.DEFINE_enum(
  'weights',
  None,
  ['ema', 'raw'],
  "Of a run: 'ema' (if not given), their running average, where there is one.",
)


def main(argv: list[str]) -> None:
  """Finds the images, predicts, and writes."""
  from gfl_jax.inference import image_files, predictor, results

  out = pathlib.Path(_OUT.value)
  results.check_out(out)
  sources = image_files.find(argv[1:], leave_out=out)
  launch.use_compilation_cache(predictor.root_of(_MODEL.value))
  detector = predictor.load(_MODEL.value, step=_STEP.value, weights=_WEIGHTS.value)
  writer = results.Results(out, sources, detector, min_score=_MIN_SCORE.value)
  problems: dict[int, str] = {}
  try:
    with tqdm.tqdm(total=len(sources), desc='predict', unit='image') as progress:

      def failed(index: int, error: Exception) -> None:
        path, text = str(sources[index].path), str(error)
        problems[index] = text if path in text else f'{path}: {text}'
        progress.update()

      for index, image, found in detector.stream(
        [source.path for source in sources], batch_size=_BATCH_SIZE.value, failed=failed
      ):
        writer.add(index, image, found)
        progress.update()
  except BaseException:  # Ctrl-C, too: hours of results may be there
    print(f'Broken off. {writer.finish()}')
    raise
  print(writer.finish())
  if problems:
    lines = ''.join(f'\n  {text}' for _, text in sorted(problems.items()))
    raise UserError(f'{len(problems)} of {len(sources)} images were left out:{lines}')


if __name__ == '__main__':
  launch.require_flags(['model', 'out'])
  launch.run(main)
