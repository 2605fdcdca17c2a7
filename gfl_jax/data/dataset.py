"""A data set as training and evaluation use it: iterators of numpy dicts.

The annotations of both splits are held in memory (some 50 MB for COCO); pixels come
from memory (memory.py) or from TFDS records (records.py). Whatever the source, the
batch at a step is a pure function of (seed, step).
"""

import dataclasses
import functools
import itertools
import logging
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from gfl_jax.data import transforms
from gfl_jax.data.annotations import Annotations
from gfl_jax.data.transforms import Plan
from gfl_jax.errors import UserError

_LOG = logging.getLogger(__name__)
Batch = dict[str, np.ndarray]
MIN_IMAGE_SIDE = 32  # original pixels; smaller images are left out of training


@dataclasses.dataclass(frozen=True)
class Splits:
  """Both splits of a data set, before any image is left out of training.

  Attributes:
    class_names: C names.
    category_ids: C ints, the data set's own id of each label.
    train, validation: annotations, and pixels with the methods of `MemoryPixels`.
    bad_images, degenerate_boxes: how many of the training split the preparation has
      left out.
  """

  class_names: tuple[str, ...]
  category_ids: tuple[int, ...]
  train: tuple[Annotations, Any]
  validation: tuple[Annotations, Any]
  bad_images: int = 0
  degenerate_boxes: int = 0


class Dataset:
  """Training and evaluation split of one data set.

  Attributes:
    class_names, category_ids: see `Splits`.
    num_train, num_eval: number of images in use.
    counters: dict of ints for the log: what was left out of training and why.
  """

  def __init__(self, config: Any, splits: Splits):
    """Args: config: config.data.

    Raises: ValueError: a label outside the classes, an image larger than its canvas,
      no image or no box left to train on, or no image to evaluate.
    """
    self._config = config
    self.class_names = tuple(splits.class_names)
    self.category_ids = tuple(splits.category_ids)
    train, train_pixels = splits.train
    self._eval, self._eval_pixels = splits.validation
    for annotations in (train, self._eval):
      annotations.check_labels(len(self.class_names))
    keep, self.counters = _training_filter(train, config.max_boxes, config.keep_empty)
    self.counters['degenerate_boxes'] += splits.degenerate_boxes
    self.counters['bad_images'] = splits.bad_images
    self._train, self._train_pixels = train.select(keep), train_pixels.select(keep)
    for name, split in (('training', self._train), ('evaluation', self._eval)):
      if not len(split):
        raise UserError(f'no image is left for {name}; counters: {self.counters}')
      transforms.check_fit(split.sizes, split.image_ids, config)
    self._train_usable, self._eval_usable = map(_usable, (self._train, self._eval))
    self._check_boxes()

  num_train = property(lambda self: len(self._train))
  num_eval = property(lambda self: len(self._eval))

  @property
  def canvases(self) -> tuple[tuple[int, int], ...]:
    """The one or two (h, w) that batches come on; see `train_batches`."""
    turned = {bool(t) for s in (self._train, self._eval) for t in self._turned(s)}
    return tuple(self._canvas(t) for t in sorted(turned))

  @property
  def canvas_covered(self) -> float:
    """Share of the training canvases' pixels that images cover; the rest is padding.

    It is the mean over images and over the range of the short side, without zoom.
    """
    c, (low, high) = self._config, self._config.short_side
    pixels = [
      transforms.resized_sizes(self._train.sizes, short_side, c.max_long_side).prod(-1)
      for short_side in np.linspace(low, high, 9 if high > low else 1)
    ]
    return float(np.mean(pixels) / np.prod(c.canvas))

  @functools.cached_property
  def checksum(self) -> int:
    """CRC-32 of the classes and of the annotations of both splits, not of pixels.

    Hosts that have the same checksum make the same batches.
    """
    classes = list(zip(self.class_names, map(int, self.category_ids), strict=True))
    checksum = zlib.crc32(repr(classes).encode())
    for split in (self._train, self._eval):
      for field in dataclasses.fields(split):
        values = np.ascontiguousarray(getattr(split, field.name))
        checksum = zlib.crc32(values.tobytes(), checksum)
    return checksum

  def steps_per_epoch(self, batch_size: int) -> int:
    """Number of batches in which every training image comes once."""
    portrait = int(self._turned(self._train).sum())
    counts = (self.num_train - portrait, portrait)
    return sum(-(-count // batch_size) for count in counts)

  def train_batches(
    self,
    batch_size: int,
    *,
    seed: int,
    start_step: int = 0,
    shard: tuple[int, int] = (0, 1),
  ) -> Iterator[Batch]:
    """Endless batches, the first being that of `start_step`.

    An epoch is a permutation of the images, cut into batches. The last batch is filled
    up with the first images of the same permutation, as mmdet's sampler does. If the
    canvas is not square, all images of a batch have one orientation and portrait images
    come on the transposed canvas (mmdet groups by aspect ratio, too), so a step is
    compiled for each of `canvases`.

    Args:
      batch_size: images of all shards together.
      seed: decides, with the epoch, the order and all random transforms.
      start_step: the batches equal those of an uninterrupted run from this step on;
        starting late costs nothing.
      shard: (index, count): gives the index-th of `count` equal parts of each batch.
    Raises: ValueError: the batch cannot be split into equal parts.
    """
    part = _shard_part(batch_size, shard)
    plans = lambda: self._train_plans(batch_size, seed, start_step, part)
    images = self._train_pixels.images(plans())
    for plan, pixels in zip(plans(), images, strict=False):
      yield self._assemble(self._train, self._train_usable, plan, pixels)

  def eval_batches(
    self, batch_size: int, *, shard: tuple[int, int] = (0, 1)
  ) -> Iterator[Batch]:
    """Every evaluation image once; padding images (id -1) fill up the last batch.

    Images without boxes are kept. Portrait images come last, on the transposed canvas,
    if the canvas is not square.
    Args: batch_size: of all shards together; shard: as in `train_batches`.
    """
    part = _shard_part(batch_size, shard)
    images = self._eval_pixels.images(self._eval_plans(batch_size, part))
    for plan, pixels in zip(self._eval_plans(batch_size, part), images, strict=True):
      yield self._assemble(self._eval, self._eval_usable, plan, pixels)

  def eval_image_ids(
    self, batch_size: int, *, shard: tuple[int, int] = (0, 1)
  ) -> list[int]:
    """The ids of the images of `eval_batches`, in order; the arguments are the same."""
    part = _shard_part(batch_size, shard)
    rows = np.concatenate([plan.rows for plan in self._eval_plans(batch_size, part)])
    return self._eval.image_ids[rows[rows >= 0]].tolist()

  def ground_truth(self) -> dict[str, list[dict[str, Any]]]:
    """The evaluation split as the content of a COCO json; see `Annotations.to_coco`."""
    return self._eval.to_coco(self.class_names, self.category_ids)

  @property
  def unused_classes(self) -> list[str]:
    """Names of the classes that no training box has."""
    used = set(self._train.labels[self._train_usable].tolist())
    return [name for label, name in enumerate(self.class_names) if label not in used]

  @property
  def train_box_sizes(self) -> np.ndarray:
    """[n, 2] float (w, h) of the training boxes in pixels of the canvas.

    The short side of the images is the largest of its range, without zoom.
    """
    sizes = self._train.sizes
    owner = self._train.owner[self._train_usable]
    boxes = self._train.boxes[self._train_usable]
    boxes = transforms.clip_to_image(boxes, sizes[owner])
    scale = (transforms.largest_sizes(sizes, self._config) / sizes)[owner, ::-1]
    return (boxes[:, 2:] - boxes[:, :2]) * scale

  def _check_boxes(self) -> None:
    """Raises a UserError if no box is left to train on; warns of suspicious boxes."""
    shares = [split.look_like_shares() for split in (self._train, self._eval)]
    warnings = [
      f'{mask.sum()} of {len(mask)} {name} boxes lie within the first pixel of their'
      ' image. They look like shares of its size, in 0..1, but COCO has pixels'
      for name, mask in zip(('training', 'evaluation'), shares, strict=True)
      if mask.any()
    ]
    if not (self._train_usable & ~shares[0]).any():
      reason = (
        warnings[0]
        if shares[0].any()
        else (
          f'{self._train.is_crowd.sum()} of {len(self._train.boxes)} are crowds'
          ' (iscrowd: 1), which are not trained on'
        )
      )
      raise UserError(
        f'no box is left to train on: {reason}. Left out: {self.counters}'
      )
    for warning in warnings:
      _LOG.warning('%s.', warning)
    if not self._eval_usable.any():
      _LOG.warning('No evaluation image has a box: there is no AP to compute.')

  def _turned(self, split: Annotations) -> np.ndarray:
    """[N] bool: the image comes on the transposed canvas."""
    return transforms.is_turned(split.sizes, self._config.canvas)

  def _canvas(self, turned: bool) -> tuple[int, int]:
    height, width = self._config.canvas
    return (width, height) if turned else (height, width)

  def _train_plans(self, batch_size, seed, start_step, part) -> Iterator[Plan]:
    turned = self._turned(self._train)
    steps = self.steps_per_epoch(batch_size)
    first_epoch, first = divmod(start_step, steps)
    for epoch in itertools.count(first_epoch):
      rng = np.random.default_rng([seed, epoch])
      rows = _epoch_rows(turned, batch_size, rng)
      draws = rng.random((steps, batch_size, transforms.NUM_DRAWS))
      for step in range(first, steps):
        mine = rows[step, part]
        canvas = self._canvas(bool(turned[mine[0]]))
        yield transforms.plan_training(
          mine, self._train.sizes[mine], draws[step, part], canvas, self._config
        )
      first = 0

  def _eval_plans(self, batch_size, part) -> Iterator[Plan]:
    turned = self._turned(self._eval)
    for flag in (False, True):
      group = np.flatnonzero(turned == flag)
      padded = np.full(-(-len(group) // batch_size) * batch_size, -1)
      padded[: len(group)] = group
      for rows in padded.reshape(-1, batch_size)[:, part]:
        yield transforms.plan_evaluation(
          rows, self._eval.sizes[rows], self._canvas(flag), self._config
        )

  def _assemble(self, split: Annotations, usable, plan: Plan, pixels) -> Batch:
    real = plan.rows >= 0
    counts = np.where(real, np.diff(split.starts)[plan.rows], 0)
    rows = split.box_rows(plan.rows[real])
    owner = np.repeat(np.arange(len(plan.rows)), counts)
    rows, owner = rows[usable[rows]], owner[usable[rows]]
    sizes = np.where(real[:, None], split.sizes[plan.rows], 0)
    boxes, inside = transforms.boxes_on_canvas(split.boxes[rows], owner, sizes, plan)
    rows, owner, boxes = rows[inside], owner[inside], boxes[inside]
    counts = np.bincount(owner, minlength=len(plan.rows))
    slot = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
    limit = self._config.max_boxes
    fits = slot < limit
    place = owner[fits], slot[fits]
    shape = (len(plan.rows), limit)
    batch = {
      'images': pixels,
      'image_sizes': plan.image_sizes.astype(np.int32),
      'boxes': np.zeros((*shape, 4), np.float32),
      'labels': np.zeros(shape, np.int32),
      'valid': np.zeros(shape, bool),
      'image_ids': np.where(real, split.image_ids[plan.rows], -1).astype(np.int32),
      'scales': np.ones((len(plan.rows), 2), np.float32),
      'original_sizes': sizes.astype(np.int32),
      'dropped_boxes': np.maximum(counts - limit, 0).astype(np.int32),
    }
    batch['boxes'][place] = boxes[fits]
    batch['labels'][place] = split.labels[rows[fits]]
    batch['valid'][place] = True
    batch['scales'][real] = (plan.resized[real] / sizes[real])[:, ::-1]
    return batch


def _usable(split: Annotations) -> np.ndarray:
  """[M] bool: boxes that batches hold, neither crowds nor degenerate."""
  degenerate = transforms.is_degenerate(split.boxes, split.sizes[split.owner])
  return ~degenerate & ~split.is_crowd


def _training_filter(
  split: Annotations, max_boxes: int, keep_empty: bool
) -> tuple[np.ndarray, dict[str, int]]:
  """Positions of the images to train on, and counts of what was left out.

  Source: mmdet's filter_imgs: an image that has any annotation, even only a crowd, is
  kept; with `keep_empty` (its filter_empty_gt=False) also one without any.
  """
  empty = (np.diff(split.starts) == 0) & (not keep_empty)
  small = split.sizes.min(-1) < MIN_IMAGE_SIDE
  keep = np.flatnonzero(~empty & ~small)
  usable = _usable(split)
  per_image = np.bincount(split.owner[usable], minlength=len(split))[keep]
  return keep, {
    'images_without_boxes': int(empty.sum()),
    'images_too_small': int((small & ~empty).sum()),
    'crowd_boxes': int(split.is_crowd.sum()),
    'degenerate_boxes': int((~usable & ~split.is_crowd).sum()),
    'overflowing_boxes': int(np.maximum(per_image - max_boxes, 0).sum()),
  }


def _epoch_rows(turned: np.ndarray, batch_size: int, rng) -> np.ndarray:
  """[steps, batch_size] positions of one epoch; a batch has one orientation."""
  order = rng.permutation(len(turned))
  groups = [order[turned[order] == flag] for flag in (False, True)]
  batches = [
    np.resize(group, (-(-len(group) // batch_size), batch_size))
    for group in groups
    if len(group)
  ]
  return rng.permutation(np.concatenate(batches))


def _shard_part(batch_size: int, shard: tuple[int, int]) -> slice:
  index, count = shard
  if not 0 <= index < count or batch_size % count:
    raise UserError(
      f'{batch_size=} cannot be split evenly for {shard=} (index, count): choose a '
      'batch size that is a multiple of the number of processes'
    )
  size = batch_size // count
  return slice(index * size, (index + 1) * size)
