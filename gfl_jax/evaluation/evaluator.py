"""One pass over an evaluation set: detections, metrics, and the files of a run."""

import io
import itertools
import json
import logging
import os
import pickle
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tqdm
from jax.experimental import multihost_utils

from gfl_jax import files
from gfl_jax.errors import UserError
from gfl_jax.evaluation import coco_metrics, decode, diagnostic_rows, diagnostics
from gfl_jax.evaluation.decode import Candidates, Detections
from gfl_jax.evaluation.diagnostic_rows import DiagnosticRows, Rows, Sides
from gfl_jax.evaluation.samples import choose_samples, collect_samples, sample_arrays
from gfl_jax.models import canvas_points, network_input
from gfl_jax.models.representations import REPRESENTATIONS

_LOG = logging.getLogger(__name__)
# What `make_predict`'s function returns: detections in original px, their sides, and
# candidates for the diagnostics.
Output = tuple[Detections, Sides, Candidates]


def make_detect(detector, config: Any) -> Callable:
  """The pure function `detect(variables, batch) -> Detections`, to jit or to export.

  It normalizes the batch's images, applies the detector and decodes. Of the batch it
  reads `images` [B, H, W, 3] uint8, on the canvas; `image_sizes` [B, 2] (h, w), the
  part of the canvas that an image covers; and `scales` [B, 2] (x, y), canvas px per
  original px. The boxes of the result are in original px.

  Args:
    detector: a linen module that returns `Predictions`.
    config: the experiment; reads `data.mean`, `data.std`, `decode`, `score`, `box`,
      and what `canvas_points` reads.
  """

  def detect(variables, batch) -> Detections:
    arguments = _apply(detector, config, variables, batch)
    return decode.decode_detections(*arguments, scale_factors=batch['scales'])

  return detect


def make_predict(detector, config: Any) -> Callable:
  """The pure function `predict(variables, batch) -> Output`, to be jitted.

  It computes the detections as `make_detect`'s does, and what the diagnostics need. The
  arguments are the same.
  """

  def predict(variables, batch) -> Output:
    arguments = _apply(detector, config, variables, batch)
    scales, count = batch['scales'], diagnostic_rows.NUM_CANDIDATES
    found = decode.decode_detections(*arguments, scale_factors=scales)
    candidates = decode.strongest_candidates(
      *arguments, count=count, scale_factors=scales
    )
    gather = jax.vmap(lambda logits, index: logits[index])
    outputs = gather(arguments[0].box_logits, found.anchor_index)
    distance = REPRESENTATIONS[config.box.kind].distance(outputs, config.box)
    return found, Sides(distance, outputs), candidates

  return predict


def _apply(detector, config, variables, batch) -> tuple:
  """The predictions of a batch, with the other arguments of `decode_detections`."""
  predictions = detector.apply(variables, network_input(config, batch), train=False)
  points = canvas_points(config, batch['images'].shape[1:3])
  return predictions, points, batch['image_sizes'], config


def evaluate(
  predict: Callable,
  variables,
  batches: Iterable[dict],
  ground_truth: dict,
  *,
  config: Any,
  folder: str | os.PathLike,
  step: int,
  notes: Mapping[str, Any] | None = None,
  share: Collection[int] | None = None,
) -> dict:
  """Evaluates a detector and writes the measures into a folder.

  Process 0 writes `detections.json` (COCO results), `metrics.json`, `diagnostics.npz`
  (arrays of `diagnostics.summarize`) and `samples.npz` (what the report draws); each
  file is replaced atomically. If they cannot be written, for example on a full disk,
  there is a warning. With several processes each one evaluates its own share of the
  batches and all get the metrics of the whole set; the samples are from process 0's.

  Args:
    predict: `make_predict`'s function, jitted; with several processes its results are
      divided over them like the batch.
    variables: of the detector.
    batches: every image of the set (or of this process's share) once; images with id
      -1 pad the last batch.
    ground_truth: the evaluation set in COCO's form; its `categories` in the order of
      the classes.
    config: the experiment; reads `box` and what `canvas_points` reads.
    folder: for the files; created if missing.
    step: the training step of `variables`, one of the metrics.
    notes: further entries of the metrics.
    share: ids of the images in this process's batches; None for the whole set.

  Returns:
    `evaluate_detections`'s metrics with `diagnostics` (the scalars of
    `diagnostics.summarize`), `step`, `num_images`, `seconds` and the notes.

  Raises:
    ValueError: an image is in the batches twice or not at all; and as
      `evaluate_detections` and `to_coco_results`.
  """
  start = time.perf_counter()
  category_ids = [category['id'] for category in ground_truth['categories']]
  all_ids = [image['id'] for image in ground_truth['images']]
  sample_ids = choose_samples(ground_truth, all_ids if share is None else share)
  observed = DiagnosticRows(ground_truth, config)
  results, image_ids, samples = [], [], []
  total, is_first = len(all_ids), jax.process_index() == 0
  options = {'desc': 'evaluate', 'unit': 'image', 'disable': not is_first}
  with tqdm.tqdm(total=total, **options) as progress:
    sent: Iterator[Any] = ((batch, predict(variables, batch)) for batch in batches)
    # A result is read after the next batch is sent, so that the device never waits.
    for (batch, output), _ in itertools.pairwise(itertools.chain(sent, [None])):
      found, sides, candidates = jax.tree.map(_local_rows, output)
      results += coco_metrics.to_coco_results(found, batch['image_ids'], category_ids)
      seen = [int(i) for i in batch['image_ids'] if i != -1]
      image_ids += seen
      observed.add(batch, found, candidates, sides)
      if is_first and sample_ids.intersection(seen):
        samples += collect_samples(batch, found, sides, sample_ids, config)
      count = len(batch['image_ids']) * jax.process_count()
      progress.update(min(count, total - progress.n))
  results, image_ids, rows = _gather_processes(results, image_ids, observed.rows())
  _check_complete(image_ids, ground_truth)

  scalars, arrays = diagnostics.summarize(rows, config.box.kind, observed.edge_kinds)
  metrics = {
    'step': step,
    **coco_metrics.evaluate_detections(ground_truth, results),
    'diagnostics': scalars,
    'num_images': len(image_ids),
    'seconds': round(time.perf_counter() - start, 3),
    **(notes or {}),
  }
  if is_first:
    names = [category['name'] for category in ground_truth['categories']]
    contents = {
      'detections.json': json.dumps(results),
      'samples.npz': _npz(sample_arrays(samples, names)),
      'diagnostics.npz': _npz(arrays),
      'metrics.json': json.dumps(metrics, indent=2),
    }
    try:
      Path(folder).mkdir(parents=True, exist_ok=True)
      for name, content in contents.items():
        files.atomic_write(Path(folder) / name, content)
    except OSError as error:  # a full disk must not end a training
      _LOG.warning('Files of the evaluation of step %d not written: %s', step, error)
  return metrics


def _local_rows(array: jax.Array) -> np.ndarray:
  """The rows on this process's devices, which are those of its own batch."""
  if array.is_fully_addressable:
    return np.asarray(array)
  shards = sorted(array.addressable_shards, key=lambda shard: shard.index[0].start)
  return np.concatenate([np.asarray(shard.data) for shard in shards])


def _gather_processes(
  results: list, image_ids: list, rows: Rows
) -> tuple[list, list, Rows]:
  """The three tables of all processes, joined in the order of the processes."""
  if jax.process_count() == 1:
    return results, image_ids, rows
  parts = map(pickle.loads, _gather(pickle.dumps((results, image_ids, rows))))
  all_results, all_ids, tables = zip(*parts, strict=True)
  flat = itertools.chain.from_iterable
  return list(flat(all_results)), list(flat(all_ids)), diagnostic_rows.join(tables)


def _gather(mine: bytes) -> list[bytes]:
  """The bytes of each process."""
  sizes = multihost_utils.process_allgather(np.array(len(mine))).reshape(-1)
  # Padded to a power of 2, because each length compiles a program that stays in memory.
  padded = np.zeros(1 << (int(sizes.max()) - 1).bit_length(), np.uint8)
  padded[: len(mine)] = np.frombuffer(mine, np.uint8)
  rows = multihost_utils.process_allgather(padded)
  return [row[:size].tobytes() for row, size in zip(rows, sizes, strict=True)]


def _npz(arrays: dict[str, Any]) -> bytes:
  file = io.BytesIO()
  np.savez_compressed(file, **arrays)
  return file.getvalue()


def _check_complete(image_ids: list[int], ground_truth: dict) -> None:
  expected = {image['id'] for image in ground_truth['images']}
  counts = Counter(image_ids)
  problems = {
    'twice': [i for i, count in counts.items() if count > 1],
    'missing': expected - counts.keys(),
    'unknown': counts.keys() - expected,
  }
  found = [f'{len(x)} {name} {sorted(x)[:10]}' for name, x in problems.items() if x]
  if found:
    raise UserError(
      'the batches must hold each image of the ground truth once: ' + ', '.join(found)
    )
