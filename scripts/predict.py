"""Finds objects in photographs with a trained detector, and draws them.

  python scripts/predict.py --model=runs/demo photos/ 'more/*.jpg' one.png --out=found

--model is the folder of a run or of an export. Images are files, folders (with all
subfolders) and quoted patterns. The folder --out gets

  pictures/        each image with its boxes, classes, scores and the spread of each
                   side: a band along the side, one standard deviation to each side
  detections.json  every box as COCO results, with edge_std (left, top, right, bottom)
  images.json      the ids of images and categories, in COCO's form: pycocotools' COCO
                   reads it, and its loadRes reads detections.json

An image that cannot be read is named and skipped, and the exit code is 1. If you
interrupt the command, it writes the json files of the pictures so far. Pictures of
other names that are in the folder already stay.
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
  'batch_size',
  1,
  'Images at a time; on GPUs and TPUs more than 1 is faster.',
  lower_bound=1,
)
_MIN_SCORE = flags.DEFINE_float(
  'min_score',
  0.3,
  'Least score of a box in the pictures; detections.json has all boxes.',
  lower_bound=0.0,
  upper_bound=1.0,
)
_STEP = flags.DEFINE_string(
  'step', None, "Of a run: 'newest' (the default), 'best' or a step number."
)
_WEIGHTS = flags.DEFINE_enum(
  'weights',
  None,
  ['ema', 'raw'],
  "Of a run: 'ema' (the default) takes the running average, if there is one.",
)


def main(argv: list[str]) -> None:
  """Finds the images, predicts and writes the results."""
  from gfl_jax.inference import image_files, loading, predictor, result_files

  out = pathlib.Path(_OUT.value)
  result_files.check_out(out)
  sources = image_files.find(argv[1:], leave_out=out)
  launch.use_compilation_cache(loading.root_of(_MODEL.value))
  detector = predictor.load(_MODEL.value, step=_STEP.value, weights=_WEIGHTS.value)
  writer = result_files.Results(out, sources, detector, min_score=_MIN_SCORE.value)
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
  except BaseException:  # Ctrl-C too: keep the results so far
    print(f'Interrupted. {writer.finish()}')
    raise
  print(writer.finish())
  if problems:
    lines = ''.join(f'\n  {text}' for _, text in sorted(problems.items()))
    raise UserError(f'{len(problems)} of {len(sources)} images were skipped:{lines}')


if __name__ == '__main__':
  launch.require_flags(['model', 'out'])
  launch.run(main)
