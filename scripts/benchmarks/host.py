"""Cases of benchmark.py that run on the host: evaluation, process settings, studies."""

import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from configs import demo_shapes
from configs.ablations import beta
from gfl_jax import data
from gfl_jax.evaluation import coco_metrics
from gfl_jax.evaluation.decode import Detections
from scripts.benchmarks.cases import Options, interleaved, random_boxes, spread

ROOT = Path(__file__).parents[2]


def evaluate(options: Options) -> Iterator[dict]:
  """COCO metrics of detections: ground truth with errors, and random boxes."""
  truth, detections, image_ids = _evaluation_set(5000, 100, 80)
  category_ids = range(1, 81)
  results = coco_metrics.to_coco_results(detections, image_ids, category_ids)
  metrics: dict = {}

  def convert():
    coco_metrics.to_coco_results(detections, image_ids, category_ids)

  def measure():
    metrics.update(coco_metrics.evaluate_detections(truth, results))

  calls = {'to COCO form': convert, 'metrics': measure}
  for name, times in interleaved(calls, options.repeats).items():
    yield {'variant': name, **times} | (
      {'AP': round(metrics['AP'], 4)} if name == 'metrics' else {}
    )
  if options.oracle:
    start = time.perf_counter()
    expected = _pycocotools(truth, results)
    seconds = time.perf_counter() - start
    got = [metrics[name] for name in coco_metrics.METRICS]
    yield {
      'variant': 'pycocotools',
      **spread([seconds]),
      'largest_difference': float(np.abs(np.array(got) - expected).max()),
    }


def _evaluation_set(num_images: int, num_detections: int, num_classes: int):
  """Ground truth as the dict of COCO's json, detections [N, D], and N image ids."""
  rng = np.random.default_rng(0)
  canvas, num_boxes = (480, 640), 7
  boxes = random_boxes(rng, canvas, (num_images, num_boxes))
  classes = rng.integers(0, num_classes, (num_images, num_boxes))
  # Each box has 4 detections; the smaller their error, the higher their score.
  found = random_boxes(rng, canvas, (num_images, num_detections))
  found_classes = rng.integers(0, num_classes, found.shape[:2])
  scores = rng.uniform(0.05, 0.5, found.shape[:2])
  sides = np.tile(boxes[..., 2:] - boxes[..., :2], 2)
  for i in range(4):
    part = slice(i * num_boxes, (i + 1) * num_boxes)
    error = rng.uniform(0, 0.3, (*boxes.shape[:2], 1))
    found[:, part] = boxes + error * sides * rng.uniform(-1, 1, boxes.shape)
    found_classes[:, part] = classes
    scores[:, part] = 1 - error[..., 0] * rng.uniform(0.5, 3, error.shape[:2])
  order = np.argsort(-scores, axis=1)
  sort = lambda x: np.take_along_axis(
    x, order.reshape(x.shape[:2] + (1,) * (x.ndim - 2)), 1
  )
  valid = np.ones(order.shape, bool)
  detections = Detections(
    sort(found), sort(scores), sort(found_classes), valid, sides, order
  )
  boxes = boxes.astype(float)
  annotations = [
    {
      'id': i * num_boxes + j + 1,
      'image_id': i,
      'category_id': int(classes[i, j]) + 1,
      'bbox': [x0, y0, x1 - x0, y1 - y0],
      'area': (x1 - x0) * (y1 - y0),
      'iscrowd': 0,
    }
    for i in range(num_images)
    for j, (x0, y0, x1, y1) in enumerate(boxes[i].tolist())
  ]
  truth = {
    'images': [{'id': i, 'height': 480, 'width': 640} for i in range(num_images)],
    'annotations': annotations,
    'categories': [{'id': c + 1, 'name': f'class {c}'} for c in range(num_classes)],
  }
  return truth, detections, np.arange(num_images)


def _pycocotools(truth: dict, results: list[dict]) -> np.ndarray:
  """COCO's 12 metrics."""
  from pycocotools.coco import COCO
  from pycocotools.cocoeval import COCOeval

  with contextlib.redirect_stdout(io.StringIO()):
    coco = COCO()
    coco.dataset = {'info': {}, **truth}
    coco.createIndex()
    evaluation = COCOeval(coco, coco.loadRes(results), 'bbox')
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
  return evaluation.stats


def switches(options: Options) -> Iterator[dict]:
  """step/demo in new processes: with this process's settings, each alone, and none.

  All run twice, in opposite orders, because the speed of the machine may drift.
  """
  names = ('GLIBC_TUNABLES', 'XLA_FLAGS')
  kept = [names, names[:1], names[1:], ()]
  for setting in [*kept, *reversed(kept)]:
    environment = {
      k: v for k, v in os.environ.items() if k not in names or k in setting
    }
    # Without launch.run, which would restore the settings.
    code = (
      'from absl import app; from scripts import benchmark; app.run(benchmark.main)'
    )
    done = subprocess.run(
      [sys.executable, '-c', code, 'step/demo', f'--repeats={options.repeats}'],
      cwd=ROOT,
      env=environment,
      stdout=subprocess.PIPE,
      text=True,
      check=True,
    )
    line = json.loads(done.stdout.splitlines()[-1])
    given = ' '.join(f'{name}={os.environ.get(name, "")}' for name in setting)
    yield line | {'case': 'switches', 'variant': given or 'neither'}


def beta_study(options: Options) -> Iterator[dict]:
  """A study of beta with five rows, beside the same five runs one by one.

  Each way starts with an empty compilation cache. Every row compiles its own step.
  """
  del options
  config = demo_shapes.get_config().data
  config.data_dir = str(ROOT / config.data_dir)
  data.load(config)  # draws the scenes before time is measured
  length = ('epochs=1.0', 'checkpoint_every_steps=1000')
  with tempfile.TemporaryDirectory() as folder:
    study = ['scripts/ablate.py', '--study=beta', '--base=demo_shapes', '--seeds=1']
    study += [f'--root={folder}/study', *(f'--set={text}' for text in length)]
    plain = [
      [
        'scripts/train.py',
        f'--config=configs/ablations/beta.py:{row}@demo_shapes',
        f'--workdir={folder}/plain/{row}',
        *(f'--config.{text}' for text in length),
      ]
      for row in beta.ROWS
    ]
    variants = {'five plain runs': plain, 'study of five rows': [study]}
    for name, commands in variants.items():
      start = time.perf_counter()
      for command in commands:
        subprocess.run(
          [sys.executable, *command], cwd=ROOT, capture_output=True, check=True
        )
      seconds = time.perf_counter() - start
      print(f'{name}: {seconds:.0f} s', file=sys.stderr)
      yield {'variant': name, **spread([seconds])}


CASES: dict[str, Callable[[Options], Iterator[dict]]] = {
  'evaluate': evaluate,
  'switches': switches,
  'study': beta_study,
}
