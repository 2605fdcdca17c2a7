"""One pass over an evaluation set: detections, metrics, and the files of a run."""

import io
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import tqdm
from jax.experimental import multihost_utils
from jaxtyping import Array, Float

from gfl_jax import files
from gfl_jax.evaluation import coco_metrics, decode
from gfl_jax.evaluation.decode import Detections
from gfl_jax.models import make_anchors, network_input

NUM_SAMPLES = 12  # images kept for the report


class PredictOutput(NamedTuple):
  """Detections in original px, and the raw box outputs that they were decoded from."""

  detections: Detections
  box_logits: Float[Array, 'b n 4 bins']


def make_predict(detector, config: Any) -> Callable:
  """The pure function `predict(variables, batch) -> PredictOutput`, to be jitted.

  It normalises the batch's uint8 images, applies the detector and decodes; it reads
  only `images`, `image_sizes` and `scales` of the batch.

  Args:
    detector: a linen module that returns `Predictions`.
    config: the experiment; reads `data.mean`, `data.std`, `decode`, `box`, and what
      `make_anchors` reads.
  """

  def predict(variables, batch) -> PredictOutput:
    predictions = detector.apply(variables, network_input(config, batch), train=False)
    detections = decode.decode_detections(
      predictions,
      make_anchors(config, batch['images'].shape[1:3]),
      batch['image_sizes'],
      config,
      scale_factors=batch['scales'],
    )
    gather = jax.vmap(lambda logits, index: logits[index])
    return PredictOutput(
      detections, gather(predictions.box_logits, detections.anchor_index)
    )

  return predict


def evaluate(
  predict: Callable,
  variables,
  batches: Iterable[dict],
  ground_truth: dict,
  *,
  config: Any,
  workdir: str | os.PathLike,
  step: int,
) -> dict:
  """Evaluates a detector and writes `eval/` of the run's folder.

  Writes, each file replaced as a whole and only by process 0: `detections.json` (COCO
  results), `metrics.json` and `samples.npz` (what the report draws). With several
  processes each one passes over its own share of the batches and all get the metrics
  of the whole set; the samples are those of process 0's share.

  Args:
    predict: `make_predict`'s function, jitted; with several processes its results are
      split over them like the batch.
    variables: of the detector.
    batches: every image of the set (or of this process's share) once; images with id
      -1 pad the last batch.
    ground_truth: the evaluation set in COCO's form; its `categories` in the order of
      the classes.
    config: the experiment; reads `box` and what `make_anchors` reads.
    workdir: the run's folder.
    step: the training step of `variables`, for the record.

  Returns:
    `evaluate_detections`'s metrics with `step`, `num_images` and `seconds`.

  Raises:
    ValueError: an image that came twice or not at all, and what `evaluate_detections`
      and `to_coco_results` raise.
  """
  start = time.perf_counter()
  category_ids = [category['id'] for category in ground_truth['categories']]
  sample_ids = _choose_samples(ground_truth)
  results, image_ids, samples = [], [], []
  share = -(-len(ground_truth['images']) // jax.process_count())
  with tqdm.tqdm(
    total=share, desc='evaluate', unit='image', disable=jax.process_index() != 0
  ) as progress:
    for batch, output in _one_ahead(predict, variables, batches):
      found = jax.tree.map(_local_rows, output.detections)
      results += coco_metrics.to_coco_results(found, batch['image_ids'], category_ids)
      seen = [int(i) for i in batch['image_ids'] if i != -1]
      image_ids += seen
      if sample_ids.intersection(seen):
        logits = _local_rows(output.box_logits)
        samples += _samples(batch, found, logits, sample_ids, config)
      progress.update(len(seen))
  results, image_ids = _gather_processes(results, image_ids)
  _check_complete(image_ids, ground_truth)

  metrics = {
    'step': step,
    **coco_metrics.evaluate_detections(ground_truth, results),
    'num_images': len(image_ids),
    'seconds': round(time.perf_counter() - start, 3),
  }
  if jax.process_index() == 0:
    folder = Path(workdir) / 'eval'
    folder.mkdir(parents=True, exist_ok=True)
    names = [category['name'] for category in ground_truth['categories']]
    write = {
      'detections.json': json.dumps(results),
      'samples.npz': _pack_samples(samples, names, config.box),
      'metrics.json': json.dumps(metrics, indent=2),
    }
    for name, data in write.items():
      files.write_whole(folder / name, data)
  return metrics


def _one_ahead(predict, variables, batches) -> Iterator[tuple[dict, PredictOutput]]:
  """Hands over a result once the next batch is sent off, so the device never waits."""
  before = None
  for batch in batches:
    sent = (batch, predict(variables, batch))
    if before is not None:
      yield before
    before = sent
  if before is not None:
    yield before


def _local_rows(array: jax.Array) -> np.ndarray:
  """The rows on this process's devices: those of the batch that it handed in."""
  if array.is_fully_addressable:
    return np.asarray(array)
  shards = sorted(array.addressable_shards, key=lambda shard: shard.index[0].start)
  return np.concatenate([np.asarray(shard.data) for shard in shards])


def _gather_processes(results: list, image_ids: list) -> tuple[list, list]:
  """Joins the lists of all processes, in the order of the processes."""
  if jax.process_count() == 1:
    return results, image_ids
  mine = np.frombuffer(json.dumps([results, image_ids]).encode(), np.uint8)
  sizes = multihost_utils.process_allgather(np.array(mine.size)).reshape(-1)
  padded = np.zeros(sizes.max(), np.uint8)
  padded[: mine.size] = mine
  rows = multihost_utils.process_allgather(padded)
  parts = [
    json.loads(row[:size].tobytes()) for row, size in zip(rows, sizes, strict=True)
  ]
  return [r for part, _ in parts for r in part], [i for _, part in parts for i in part]


def _check_complete(image_ids: list[int], ground_truth: dict) -> None:
  expected = {image['id'] for image in ground_truth['images']}
  twice = sorted(i for i, count in Counter(image_ids).items() if count > 1)
  if twice:
    raise ValueError(f'images were evaluated twice: {twice[:10]} ({len(twice)} in all)')
  if set(image_ids) != expected:
    missing = sorted(expected - set(image_ids))
    unknown = sorted(set(image_ids) - expected)
    raise ValueError(
      f'the batches do not hold the images of the ground truth: {len(missing)} missing '
      f'{missing[:10]}, {len(unknown)} unknown {unknown[:10]}'
    )


def _choose_samples(ground_truth: dict) -> set[int]:
  """Image ids spread evenly over the images that have a box."""
  ids = sorted({a['image_id'] for a in ground_truth['annotations']})
  chosen = np.linspace(0, len(ids) - 1, min(NUM_SAMPLES, len(ids))).round().astype(int)
  return {ids[i] for i in chosen}


def _samples(batch, found: Detections, box_logits, sample_ids, config) -> list[dict]:
  """What the report draws of a batch's chosen images, in px of the resized image."""
  points = make_anchors(config, batch['images'].shape[1:3])
  samples = []
  for i, image_id in enumerate(batch['image_ids'].tolist()):
    if image_id not in sample_ids:
      continue
    height, width = batch['image_sizes'][i]
    scale = np.tile(batch['scales'][i], 2)
    real, kept = batch['valid'][i], found.valid[i]
    anchors = found.anchor_index[i][kept]
    probabilities = np.asarray(jax.nn.softmax(box_logits[i], axis=-1))
    samples.append(
      {
        'image_id': image_id,
        'image': batch['images'][i, :height, :width],
        'true_boxes': batch['boxes'][i][real],
        'true_classes': batch['labels'][i][real],
        'boxes': found.boxes[i][kept] * scale,
        'scores': found.scores[i][kept],
        'classes': found.classes[i][kept],
        'edge_std': found.edge_std[i][kept] * scale,
        'edge_probabilities': probabilities[kept],
        'centers': points.centers[anchors],
        'strides': points.strides[anchors],
      }
    )
  return samples


def _pack_samples(samples: list[dict], class_names: list[str], box_config) -> bytes:
  """The bytes of samples.npz: 'NUMBER/FIELD' arrays, `class_names`, `bin_values`."""
  arrays = {
    f'{number}/{field}': value
    for number, sample in enumerate(samples)
    for field, value in sample.items()
  }
  file = io.BytesIO()
  np.savez_compressed(
    file,
    num_samples=len(samples),
    class_names=np.array(class_names, np.str_),
    bin_values=np.linspace(box_config.start, box_config.stop, box_config.num_bins),
    **arrays,
  )
  return file.getvalue()
