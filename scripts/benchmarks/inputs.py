"""Cases of benchmark.py that read images: their speed, and their memory over epochs."""

import contextlib
import functools
import io
import itertools
import json
import tempfile
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from configs import gfl_r50_fpn_1x_coco
from gfl_jax import data
from gfl_jax.data import records, transforms
from scripts.benchmarks.cases import Options, interleaved, random_boxes, rate
from scripts.benchmarks.machine import resident_mb

BATCH_SIZE = 16
RUN_EPOCHS = 4  # of one timed run
EPOCHS = 20  # of the case input/memory
MAX_GROWTH = 0.01  # of memory, relative, between the halves of these epochs
# Canvas, length of the short side, and largest length of the long side.
SIZES = {'640': ((640, 640), 640, 640), '1333': ((800, 1344), 800, 1333)}


@contextlib.contextmanager
def _dataset(options: Options, size: str, cache: bool) -> Iterator[tuple]:
  """(data set, config, folder) of photographs, all of which are in both splits."""
  with tempfile.TemporaryDirectory() as temporary:
    folder = Path(temporary) / 'photographs'
    if options.photographs:
      _link_photographs(Path(options.photographs), folder)
    else:
      _write_photographs(folder)
    config = gfl_r50_fpn_1x_coco.get_config().data
    canvas, short_side, longest = SIZES[size]
    config.update(name='coco_folder', path=str(folder), data_dir=f'{temporary}/data')
    config.update(canvas=canvas, short_side=(short_side,) * 2, max_long_side=longest)
    config.flip = 0.0  # the bare loop does not mirror either
    config.cache = cache
    yield data.load(config), config, folder


def read_input(options: Options, *, size: str) -> Iterator[dict]:
  """Four epochs of training batches, beside a bare loop that does the same work.

  The bare loop has the encoded images in memory and one thread per core; each thread
  decodes an image, resizes it to the same size and copies it to the same canvas. Our
  time includes the start of the pipeline and the batches that it reads ahead.
  """
  with _dataset(options, size, cache=False) as (dataset, config, folder):
    names = json.loads((folder / 'annotations/instances_val.json').read_text())[
      'images'
    ]
    encoded = [(folder / 'images' / n['file_name']).read_bytes() for n in names]
    batches = RUN_EPOCHS * dataset.steps_per_epoch(BATCH_SIZE)
    images = batches * BATCH_SIZE
    some = list(itertools.islice(itertools.cycle(encoded), images))
    place = functools.partial(_bare_place, config=config)
    cores = records.num_cores()
    with futures.ThreadPoolExecutor(cores) as pool:
      runs = {
        'read': lambda: _take(dataset.train_batches(BATCH_SIZE, seed=0), batches),
        f'bare loop of {cores} threads': lambda: sum(pool.map(place, some)),
      }
      lines = interleaved(runs, options.repeats)
    bare = lines[f'bare loop of {cores} threads']
    for name, times in lines.items():
      yield {
        'variant': f'{name}, {images} images',
        **times,
        **rate(images, times),
        'times_bare': round(bare['median_ms'] / times['median_ms'], 3),
      }


def _take(batches: Any, count: int) -> None:
  for _ in itertools.islice(batches, count):
    pass
  batches.close()


def _bare_place(encoded: bytes, config) -> int:
  flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
  image = cv2.imdecode(np.frombuffer(encoded, np.uint8), flags)
  size = np.array([image.shape[:2]])
  turned = transforms.is_turned(size, config.canvas)[0]
  canvas = np.zeros((*config.canvas[:: -1 if turned else 1], 3), np.uint8)
  (height, width) = transforms.resized_sizes(
    size, config.short_side[1], config.max_long_side
  )[0].tolist()
  cv2.resize(image, (width, height), dst=canvas[:height, :width])
  return 1


def cached_input(options: Options) -> Iterator[dict]:
  """Training batches of images that are kept in memory."""
  with _dataset(options, '640', cache=True) as (dataset, _, _):
    source = dataset.train_batches(BATCH_SIZE, seed=0)
    batches = dataset.steps_per_epoch(BATCH_SIZE)
    run = lambda: sum(len(b['images']) for b in itertools.islice(source, batches))
    times = interleaved({'cached': run}, options.repeats)['cached']
    images = batches * BATCH_SIZE
    yield {'variant': f'cached, {images} images', **times, **rate(images, times)}


def memory(options: Options) -> Iterator[dict]:
  """Memory of this process after each of 20 epochs of reading training batches."""
  with _dataset(options, '640', cache=False) as (dataset, _, _):
    source = dataset.train_batches(BATCH_SIZE, seed=0)
    batches = dataset.steps_per_epoch(BATCH_SIZE)
    resident = []
    for _ in range(EPOCHS):
      for _ in itertools.islice(source, batches):
        pass
      resident.append(resident_mb())
    source.close()
    half = EPOCHS // 2
    growth = max(resident[half:]) - max(resident[1:half])
    yield {
      'variant': f'{EPOCHS} epochs of {dataset.num_train} images',
      'resident_mb': resident,
      'growth_mb': round(growth, 1),
      'met': growth < MAX_GROWTH * resident[0],
    }


def _link_photographs(source: Path, folder: Path) -> None:
  """Makes a folder in COCO form with the training images of `source` as both splits."""
  (folder / 'annotations').mkdir(parents=True)
  (folder / 'images').symlink_to((source / 'images').resolve())
  content = (source / 'annotations' / 'instances_train.json').read_text()
  for split in ('train', 'val'):
    (folder / 'annotations' / f'instances_{split}.json').write_text(content)


def _write_photographs(folder: Path, *, count: int = 128, distinct: int = 16) -> None:
  """Makes a folder in COCO form, of 640 x 480 px noise with a photograph's spectrum."""
  rng = np.random.default_rng(0)
  (folder / 'images').mkdir(parents=True)
  (folder / 'annotations').mkdir()
  for i in range(distinct):
    file = io.BytesIO()
    Image.fromarray(_pink_noise(rng, 480, 640)).save(file, 'jpeg', quality=90)
    for image_id in range(i, count, distinct):
      (folder / 'images' / f'{image_id}.jpg').write_bytes(file.getvalue())
  boxes = random_boxes(rng, (480, 640), (count, 7)).astype(float)
  boxes[..., 2:] -= boxes[..., :2]
  images = [{'id': i, 'file_name': f'{i}.jpg'} for i in range(count)]
  annotations = [
    {'image_id': i, 'category_id': 1, 'bbox': box.tolist()}
    for i in range(count)
    for box in boxes[i]
  ]
  categories = [{'id': 1, 'name': 'thing'}]
  whole = dict(images=images, annotations=annotations, categories=categories)
  for split in ('train', 'val'):
    path = folder / 'annotations' / f'instances_{split}.json'
    path.write_text(json.dumps(whole))


def _pink_noise(rng, height: int, width: int) -> np.ndarray:
  frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width))
  frequency[0, 0] = np.inf
  white = np.fft.rfft2(rng.normal(size=(height, width, 3)), axes=(0, 1))
  noise = np.fft.irfft2(white / frequency[..., None], (height, width), axes=(0, 1))
  return np.clip(128 + 50 * noise / noise.std(), 0, 255).astype(np.uint8)


CASES: dict[str, Callable[[Options], Iterator[dict]]] = {
  **{f'input/{size}': functools.partial(read_input, size=size) for size in SIZES},
  'input/cached': cached_input,
  'input/memory': memory,
}
