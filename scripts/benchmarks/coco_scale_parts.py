"""The parts of coco_scale.py: COCO's zips made of photographs, prepared and read."""

import itertools
import json
import multiprocessing
import os
import subprocess
import sys
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tqdm

from scripts.benchmarks import machine

ROOT = Path(__file__).parents[2]
CONFIG = 'configs/gfl_r50_fpn_1x_coco.py'
BATCH_SIZE = 128  # of the drawn epoch: 16 chips of 8 images
HOSTS = 4
READ_SIZE = 16  # batch size of the images that are read
SEED = 0


class DryRun(NamedTuple):
  """Source, destination and size.

  Attributes:
    photographs: a folder in COCO form.
    folder: gets zips and prepared data.
    counts: number of images by COCO's name of a split.
    batches: number of batches in each of ten measurements.
  """

  photographs: Path
  folder: Path
  counts: dict[str, int]
  batches: int = 25

  @property
  def zips(self) -> Path:
    """The folder of COCO's zips that training needs."""
    return self.folder / 'zips'

  @property
  def final(self) -> Path:
    """The folder in which TFDS looks for the prepared data."""
    from gfl_jax.data import coco

    return self.folder / 'datasets' / 'coco' / '2017' / coco.COCO_VERSION

  def config(self) -> Any:
    """The recipe with these data."""
    from configs import gfl_r50_fpn_1x_coco

    config = gfl_r50_fpn_1x_coco.get_config()
    config.data.update(path=str(self.zips), data_dir=str(self.folder / 'datasets'))
    return config


def write_zips(dry_run: DryRun) -> dict[str, Any]:
  """Writes COCO's three zips; the time is this script's own."""
  start = time.perf_counter()
  source = json.loads(
    (dry_run.photographs / 'annotations' / 'instances_train.json').read_text()
  )
  encoded = [
    (dry_run.photographs / 'images' / image['file_name']).read_bytes()
    for image in source['images']
  ]
  dry_run.zips.mkdir()
  contents = {}
  for split, count in dry_run.counts.items():
    contents[split] = _repeated(source, count)
    with zipfile.ZipFile(dry_run.zips / f'{split}.zip', 'w') as archive:
      images = zip(contents[split]['images'], itertools.cycle(encoded), strict=False)
      for image, content in tqdm.tqdm(images, split, count, unit='image'):
        archive.writestr(f'{split}/{image["file_name"]}', content)
  path = dry_run.zips / 'annotations_trainval2017.zip'
  with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
    for split, content in contents.items():
      archive.writestr(f'annotations/instances_{split}.json', json.dumps(content))
    json_bytes = sum(member.file_size for member in archive.infolist())
  return {
    'images': {split: len(content['images']) for split, content in contents.items()},
    'annotations': {k: len(content['annotations']) for k, content in contents.items()},
    'zips_gb': round(sum(f.stat().st_size for f in dry_run.zips.iterdir()) / 1e9, 2),
    'json_mb': round(json_bytes / 1e6, 1),
    'seconds': round(time.perf_counter() - start, 1),
  }


def _repeated(source: dict[str, Any], count: int) -> dict[str, Any]:
  """COCO's json with `count` images, which repeat those of `source` under new ids."""
  of_image: dict[int, list] = {image['id']: [] for image in source['images']}
  for annotation in source['annotations']:
    of_image[annotation['image_id']].append(annotation)
  images, annotations = [], []
  for number, image in zip(
    range(1, count + 1), itertools.cycle(source['images']), strict=False
  ):
    images.append({**image, 'id': number, 'file_name': f'{number:012d}.jpg'})
    for annotation in of_image[image['id']]:
      annotations.append({**annotation, 'id': len(annotations) + 1, 'image_id': number})
  return {
    'images': images,
    'annotations': annotations,
    'categories': source['categories'],
  }


def prepare_until_killed(dry_run: DryRun) -> dict[str, Any]:
  """Runs prepare_data.py and kills it (SIGKILL) when half of the shards are written."""
  from gfl_jax.data import shards

  wanted = dry_run.counts['train2017'] // (2 * shards.IMAGES_PER_SHARD)
  done = lambda: len(_facts(dry_run))
  line = _prepare(dry_run, kill=lambda: done() >= max(wanted, 1))
  return line | {'shards': done(), 'taken_for_finished': dry_run.final.exists()}


def prepare_to_the_end(dry_run: DryRun) -> dict[str, Any]:
  """Runs the same command again, which continues and makes the index."""
  before = len(_facts(dry_run))
  line = _prepare(dry_run)
  sizes = [f.stat().st_size for f in dry_run.final.iterdir()]
  return line | {'shards_before': before, 'prepared_gb': round(sum(sizes) / 1e9, 2)}


def verify(dry_run: DryRun) -> dict[str, Any]:
  """Runs the same command again, which compares all checksums."""
  return _prepare(dry_run)


def _facts(dry_run: DryRun) -> list[Path]:
  """A file for each finished shard of an unfinished preparation."""
  return list(dry_run.final.parent.glob('.*.incomplete-*/facts/*.json'))


def _prepare(
  dry_run: DryRun, kill: Callable[[], bool] = lambda: False
) -> dict[str, Any]:
  """Runs scripts/prepare_data.py, and kills it as soon as `kill()` is true."""
  data = dry_run.config().data
  command = [sys.executable, str(ROOT / 'scripts' / 'prepare_data.py')]
  command += [f'--config={ROOT / CONFIG}', f'--config.data.path={data.path}']
  command += [f'--config.data.data_dir={data.data_dir}']
  log = dry_run.folder / 'prepare.log'
  start = time.perf_counter()
  with log.open('ab') as output:
    process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=output)
  killed = False
  while True:
    pid, status, used = os.wait4(process.pid, os.WNOHANG)
    if pid:
      break
    if not killed and kill():
      process.kill()
      killed = True
    time.sleep(0.05)
  process.returncode = os.waitstatus_to_exitcode(status)
  if process.returncode and not killed:
    raise RuntimeError(f'{log}: {log.read_text(errors="replace")[-2000:]}')
  return {
    'seconds': round(time.perf_counter() - start, 1),
    'exit_status': process.returncode,
    'most_mb': round(used.ru_maxrss * 1024 / 1e6, 1),
    'cpu_seconds': round(used.ru_utime + used.ru_stime, 1),
  }


def draw_epoch(dry_run: DryRun) -> dict[str, Any]:
  """Draws every host's batches of one epoch, with boxes but without pixels."""
  dataset = _opened(dry_run, pixels=False)
  steps = dataset.steps_per_epoch(BATCH_SIZE)
  seen: Counter[int] = Counter()
  seconds = []
  for host in range(HOSTS):
    start = time.perf_counter()
    batches = dataset.train_batches(BATCH_SIZE, seed=SEED, shard=(host, HOSTS))
    for batch in itertools.islice(batches, steps):
      seen.update(batch['image_ids'].tolist())
    seconds.append(time.perf_counter() - start)
  late = 11 * steps + steps // 2
  start = time.perf_counter()
  next(dataset.train_batches(BATCH_SIZE, seed=SEED, start_step=late))
  return {
    'batch_size': BATCH_SIZE,
    'hosts': HOSTS,
    'steps': steps,
    'images': dataset.num_train,
    'seen': len(seen),
    'seen_again': seen.total() - len(seen),
    'host_ms_per_batch': round(1e3 * max(seconds) / steps, 2),
    'first_batch_of_step': late,
    'first_batch_ms': round(1e3 * (time.perf_counter() - start), 1),
  }


def read_batches(dry_run: DryRun) -> dict[str, Any]:
  """Reads the recipe's batches, decoded and resized, at random from all shards."""
  start = time.perf_counter()
  dataset = _opened(dry_run)
  opened = time.perf_counter() - start
  batches = dataset.train_batches(READ_SIZE, seed=SEED)
  resident, marks = [], []
  start = time.perf_counter()
  next(batches)
  first = time.perf_counter() - start
  for _ in range(10):
    start = time.perf_counter()
    for _ in itertools.islice(batches, dry_run.batches):
      pass
    marks.append(time.perf_counter() - start)
    resident.append(machine.resident_mb())
  batches.close()
  images = dry_run.batches * READ_SIZE
  return {
    'open_seconds': round(opened, 1),
    'first_batch_ms': round(1e3 * first, 1),
    'batches': 10 * dry_run.batches,
    'images_per_s': round(images / float(np.median(marks)), 1),
    'resident_mb': resident,
    'canvas_covered': round(dataset.canvas_covered, 3),
  }


class _NoPixels:
  """Replaces the pixels where only order and boxes are needed."""

  def images(self, plans):
    """None for each plan."""
    return (None for _ in plans)

  def select(self, keep):
    """Itself."""
    return self


def _opened(dry_run: DryRun, *, pixels: bool = True) -> Any:
  """The prepared data; without pixels, found as a user of TFDS finds them."""
  from gfl_jax import data

  config = dry_run.config().data
  if pixels:
    return data.load(config)
  import tensorflow_datasets as tfds

  from gfl_jax.data import coco_json, index
  from gfl_jax.data.dataset import Splits

  builder = tfds.builder('coco/2017', data_dir=config.data_dir)
  splits = (index.read_split(builder, name)[0] for name in ('train', 'validation'))
  parts = ((annotations, _NoPixels()) for annotations in splits)
  names = builder.info.features['objects']['label'].names
  return data.Dataset(config, Splits(names, coco_json.COCO_CATEGORY_IDS, *parts))


PARTS: dict[str, Callable[[DryRun], dict[str, Any]]] = {
  'zips': write_zips,
  'killed': prepare_until_killed,
  'prepared': prepare_to_the_end,
  'verified': verify,
  'read': read_batches,
  'epoch': draw_epoch,
}


def run_parts(dry_run: DryRun) -> Iterator[dict[str, Any]]:
  """A line for each part; each runs in its own process, so its memory is its own."""
  for name, part in PARTS.items():
    with futures.ProcessPoolExecutor(1, multiprocessing.get_context('spawn')) as pool:
      yield {'part': name, **pool.submit(part, dry_run).result()}
