"""The data set as training and evaluation see it: iterators of numpy dicts.

Annotations of both splits are held in memory (COCO's: some 50 MB); pixels come from a
source, either memory (memory.py) or TFDS records (pipeline.py). Whatever the source,
the batch at a step is a pure function of (seed, step).
"""

import dataclasses
import functools
import itertools
import logging
import zlib
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np

from gfl_jax.data import transforms
from gfl_jax.data.scenes import EDGE_KINDS
from gfl_jax.data.transforms import Plan
from gfl_jax.errors import UserError

_LOG = logging.getLogger(__name__)
Batch = dict[str, np.ndarray]
MIN_IMAGE_SIDE = 32  # original pixels; smaller images are left out of training


class PixelSource(Protocol):
  """Gives the pixels of one split."""

  def images(self, plans: Iterator[Plan]) -> Iterator[np.ndarray]:
    """Yields, for each plan of b images, [b, *plan.canvas, 3] uint8."""
    ...

  def select(self, keep: np.ndarray) -> 'PixelSource':
    """The same with only the images at `keep` [n]."""
    ...


@dataclasses.dataclass(frozen=True)
class Annotations:
  """What is known of N images with M boxes; image i has starts[i]:starts[i + 1].

  Attributes:
    image_ids: [N] int64.
    sizes: [N, 2] int32 original (h, w).
    starts: [N + 1] int64.
    boxes: [M, 4] float32 xyxy in original pixels, as annotated.
    labels: [M] int32 in 0..C-1.
    is_crowd: [M] bool.
    areas: [M] float32, original pixels squared, the data set's own.
    edge_sigma: [M, 4] float32 (l, t, r, b): standard deviation of the annotated side
      in original pixels; NaN where unknown.
    edge_kind: [M, 4] int8, index into scenes.EDGE_KINDS; -1 where unknown.
  """

  image_ids: np.ndarray
  sizes: np.ndarray
  starts: np.ndarray
  boxes: np.ndarray
  labels: np.ndarray
  is_crowd: np.ndarray
  areas: np.ndarray
  edge_sigma: np.ndarray
  edge_kind: np.ndarray

  def __len__(self) -> int:
    return len(self.image_ids)

  @property
  def owner(self) -> np.ndarray:
    """[M] position of each box's image."""
    return np.repeat(np.arange(len(self)), np.diff(self.starts))

  def select(self, keep: np.ndarray) -> 'Annotations':
    """The annotations of the images at `keep` [n] alone, in that order."""
    counts = np.diff(self.starts)[keep]
    rows = box_rows(self.starts, keep)
    fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
    del fields['starts']
    per_image = {k: fields.pop(k)[keep] for k in ('image_ids', 'sizes')}
    per_box = {name: values[rows] for name, values in fields.items()}
    starts = np.concatenate([[0], np.cumsum(counts)])
    return Annotations(starts=starts, **per_image, **per_box)


def box_rows(starts: np.ndarray, images: np.ndarray) -> np.ndarray:
  """Rows of the boxes of some images, image by image."""
  counts = starts[images + 1] - starts[images]
  ends = np.cumsum(counts)
  return np.arange(counts.sum()) + np.repeat(starts[images] + counts - ends, counts)


class Dataset:
  """Training and evaluation split of one data set.

  Attributes:
    class_names: tuple of C names.
    category_ids: tuple of C ints, the data set's own id of each label.
    num_train, num_eval: images in use.
    counters: dict of ints for the log: what was left out of training and why.
    canvases: the (h, w) that batches come on, one or two of them.
  """

  def __init__(
    self,
    config: Any,
    *,
    class_names: tuple[str, ...],
    category_ids: tuple[int, ...],
    train: tuple[Annotations, PixelSource],
    evaluation: tuple[Annotations, PixelSource],
    bad_images: int = 0,
    degenerate_boxes: int = 0,
  ):
    """Args: config: config.data; train and evaluation: whole splits, not filtered;
      bad_images, degenerate_boxes: of the training split, left out beforehand.

    Raises: ValueError: a label outside the classes, an image larger than its canvas,
      no image or no box left to train on, or no image to evaluate.
    """
    self._config = config
    self.class_names = tuple(class_names)
    self.category_ids = tuple(category_ids)
    for annotations, _ in (train, evaluation):
      _check_labels(annotations, len(self.class_names))
    keep, counters = _training_filter(train[0], config.max_boxes, config.keep_empty)
    counters['degenerate_boxes'] += degenerate_boxes
    self.counters = counters | {'bad_images': bad_images}
    self._train = train[0].select(keep)
    self._train_pixels = train[1].select(keep)
    self._eval, self._eval_pixels = evaluation
    for name, split in (('training', self._train), ('evaluation', self._eval)):
      if not len(split):
        raise UserError(f'no image is left for {name}; counters: {self.counters}')
      turned = self._turned(split)
      canvases = np.array([config.canvas, config.canvas[::-1]])[turned.astype(int)]
      transforms.check_fit(split.sizes, split.image_ids, canvases, config)
    self._wanted = ~transforms.is_degenerate(
      self._train.boxes, self._train.sizes[self._train.owner]
    )
    self._wanted &= ~self._train.is_crowd
    self._check_boxes()

  num_train = property(lambda self: len(self._train))
  num_eval = property(lambda self: len(self._eval))

  @property
  def canvases(self) -> tuple[tuple[int, int], ...]:
    """The canvases of all batches; see `train_batches`."""
    turned = {bool(t) for s in (self._train, self._eval) for t in self._turned(s)}
    return tuple(self._canvas(t) for t in sorted(turned))

  @property
  def canvas_covered(self) -> float:
    """Share of the training canvases' pixels that images cover, the rest being padding:
    the mean over images, and over the range of the short side, without zoom."""
    low, high = self._config.short_side
    pixels = [
      transforms.resized_sizes(
        self._train.sizes, short_side, self._config.max_long_side
      ).prod(-1)
      for short_side in np.linspace(low, high, 9 if high > low else 1)
    ]
    return float(np.mean(pixels) / np.prod(self._config.canvas))

  @functools.cached_property
  def checksum(self) -> int:
    """CRC-32 of the classes and of all that is known of the images of both splits.

    Hosts with the same one cut the same batches. Pixels are not read for it.
    """
    classes = list(zip(self.class_names, map(int, self.category_ids), strict=True))
    checksum = zlib.crc32(repr(classes).encode())
    for split in (self._train, self._eval):
      for field in dataclasses.fields(split):
        values = np.ascontiguousarray(getattr(split, field.name))
        checksum = zlib.crc32(values.tobytes(), checksum)
    return checksum

  def steps_per_epoch(self, batch_size: int) -> int:
    """Batches in which every training image comes once."""
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

    An epoch is a permutation of the images cut into batches; the last batch is filled
    up with the first images of the same permutation, as mmdet's sampler does. If the
    canvas is not square, a batch holds images of one orientation and portrait images
    come on the transposed canvas (mmdet groups by aspect ratio, too), so a step is
    compiled for each of `canvases`.

    Args:
      batch_size: images of all shards together.
      seed: of the order and of all random transforms, with the epoch.
      start_step: begins here, at no cost, with what a straight run has from here on.
      shard: (index, count): gives the index-th of `count` equal parts of each batch.
    Raises: ValueError: the batch cannot be split into equal parts.
    """
    part = _shard_part(batch_size, shard)
    plans = lambda: self._train_plans(batch_size, seed, start_step, part)
    images = self._train_pixels.images(plans())
    for plan, pixels in zip(plans(), images, strict=False):
      yield self._assemble(self._train, self._wanted, plan, pixels)

  def eval_batches(
    self, batch_size: int, *, shard: tuple[int, int] = (0, 1)
  ) -> Iterator[Batch]:
    """Every evaluation image once; padding images (id -1) fill up the last batch.

    Images without boxes are kept. Portrait images come last, on the transposed canvas,
    if the canvas is not square.
    Args: batch_size: of all shards together; shard: as in `train_batches`.
    """
    part = _shard_part(batch_size, shard)
    wanted = self._wanted_for_evaluation()
    plans = lambda: self._eval_plans(batch_size, part)
    images = self._eval_pixels.images(plans())
    for plan, pixels in zip(plans(), images, strict=True):
      yield self._assemble(self._eval, wanted, plan, pixels)

  def eval_image_ids(
    self, batch_size: int, *, shard: tuple[int, int] = (0, 1)
  ) -> list[int]:
    """The images of `eval_batches`, in their order; arguments as there."""
    part = _shard_part(batch_size, shard)
    rows = np.concatenate([plan.rows for plan in self._eval_plans(batch_size, part)])
    return self._eval.image_ids[rows[rows >= 0]].tolist()

  def ground_truth(self) -> dict[str, list[dict[str, Any]]]:
    """The evaluation split as a COCO json's dict, in original pixels.

    Boxes without an area are left out: no detection can match them. `edge_sigma`
    (l, t, r, b in pixels) and `edge_kind` (four of `scenes.EDGE_KINDS`) are there where
    they are known.
    """
    split = self._eval
    images = [
      {'id': int(i), 'height': int(h), 'width': int(w)}
      for i, (h, w) in zip(split.image_ids, split.sizes, strict=True)
    ]
    names = zip(self.category_ids, self.class_names, strict=True)
    annotations = []
    for row, owner in enumerate(split.owner):
      x0, y0, x1, y1 = split.boxes[row].tolist()
      if not (x1 > x0 and y1 > y0):
        continue
      annotation = {
        'id': len(annotations) + 1,
        'image_id': int(split.image_ids[owner]),
        'category_id': self.category_ids[split.labels[row]],
        'bbox': [x0, y0, x1 - x0, y1 - y0],
        'area': float(split.areas[row]),
        'iscrowd': int(split.is_crowd[row]),
      }
      if np.isfinite(split.edge_sigma[row]).all():
        annotation['edge_sigma'] = split.edge_sigma[row].tolist()
      if (split.edge_kind[row] >= 0).all():
        annotation['edge_kind'] = [EDGE_KINDS[kind] for kind in split.edge_kind[row]]
      annotations.append(annotation)
    return {
      'images': images,
      'annotations': annotations,
      'categories': [{'id': int(i), 'name': name} for i, name in names],
    }

  @property
  def unused_classes(self) -> list[str]:
    """Names of the classes that no training box is of."""
    used = set(self._train.labels[self._wanted].tolist())
    return [name for label, name in enumerate(self.class_names) if label not in used]

  @property
  def train_box_sizes(self) -> np.ndarray:
    """[n, 2] float (w, h) of the training boxes, in canvas px at the largest short
    side, without zoom."""
    sizes = self._train.sizes
    resized = transforms.resized_sizes(
      sizes, self._config.short_side[1], self._config.max_long_side
    )
    owner = self._train.owner[self._wanted]
    boxes = transforms.clip_to_image(self._train.boxes[self._wanted], sizes[owner])
    scale = (resized / sizes)[owner, ::-1]
    return (boxes[:, 2:] - boxes[:, :2]) * scale

  def _check_boxes(self) -> None:
    """Raises a UserError if no box is left to train on; says what looks wrong."""
    as_shares, looks = _look_like_shares(self._train, 'training')
    if not (self._wanted & ~as_shares).any():
      crowds = self._train.is_crowd.sum()
      reason = looks or (
        f'{crowds} of {len(self._train.boxes)} are crowds (iscrowd: 1), which nothing'
        ' learns'
      )
      raise UserError(
        f'no box is left to train on: {reason}. Left out: {self.counters}'
      )
    _, looks_too = _look_like_shares(self._eval, 'evaluation')
    for text in filter(None, (looks, looks_too)):
      _LOG.warning('%s.', text)
    if not self._wanted_for_evaluation().any():
      _LOG.warning('No evaluation image has a box: there is no AP to compute.')

  def _wanted_for_evaluation(self) -> np.ndarray:
    """[M] bool: the boxes that batches of `eval_batches` hold."""
    degenerate = transforms.is_degenerate(
      self._eval.boxes, self._eval.sizes[self._eval.owner]
    )
    return ~self._eval.is_crowd & ~degenerate

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

  def _assemble(self, split, wanted, plan, pixels) -> Batch:
    real = plan.rows >= 0
    counts = np.where(real, np.diff(split.starts)[plan.rows], 0)
    rows = box_rows(split.starts, plan.rows[real])
    owner = np.repeat(np.arange(len(plan.rows)), counts)
    rows, owner = rows[wanted[rows]], owner[wanted[rows]]
    sizes = np.where(real[:, None], split.sizes[plan.rows], 0)
    boxes, inside = transforms.boxes_on_canvas(split.boxes[rows], owner, sizes, plan)
    rows, owner, boxes = rows[inside], owner[inside], boxes[inside]
    counts = np.bincount(owner, minlength=len(plan.rows))
    slot = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
    limit = self._config.max_boxes
    fits = slot < limit
    rows, owner, slot, boxes = rows[fits], owner[fits], slot[fits], boxes[fits]
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
    batch['boxes'][owner, slot] = boxes
    batch['labels'][owner, slot] = split.labels[rows]
    batch['valid'][owner, slot] = True
    batch['scales'][real] = (plan.resized[real] / sizes[real])[:, ::-1]
    return batch


def _check_labels(split: Annotations, num_classes: int):
  wrong = np.flatnonzero((split.labels < 0) | (split.labels >= num_classes))
  if wrong.size:
    image = split.image_ids[split.owner[wrong[0]]]
    raise UserError(
      f'label {split.labels[wrong[0]]} of image {image} is outside 0..{num_classes - 1}'
    )


def _look_like_shares(split: Annotations, name: str) -> tuple[np.ndarray, str]:
  """[M] bool: boxes within the first pixel of their image; and what to say of them."""
  with np.errstate(invalid='ignore'):  # of nan
    # 1 px may come back from TFDS as a little more.
    tiny = np.all(split.boxes[:, 2:] > 0, -1) & np.all(split.boxes <= 1 + 1e-3, -1)
  looks = (
    f'{tiny.sum()} of {len(tiny)} {name} boxes lie within the first pixel of their'
    " image: they look like shares of its size in 0..1, and COCO's are in pixels"
  )
  return tiny, looks if tiny.any() else ''


def _training_filter(split: Annotations, max_boxes: int, keep_empty: bool):
  """Positions of the images to train on, and what was left out.

  Source: mmdet's filter_imgs: an image with any annotation, be it a crowd, stays; with
  `keep_empty` (its filter_empty_gt=False) one without any stays, too.
  """
  counts = np.diff(split.starts)
  empty, small = counts == 0, split.sizes.min(-1) < MIN_IMAGE_SIDE
  left_out = empty & (not keep_empty)
  keep = np.flatnonzero(~left_out & ~small)
  degenerate = transforms.is_degenerate(split.boxes, split.sizes[split.owner])
  wanted = ~degenerate & ~split.is_crowd
  per_image = np.bincount(split.owner[wanted], minlength=len(split))[keep]
  counters = {
    'images_without_boxes': int(left_out.sum()),
    'images_too_small': int((small & ~left_out).sum()),
    'crowd_boxes': int(split.is_crowd.sum()),
    'degenerate_boxes': int((degenerate & ~split.is_crowd).sum()),
    'overflowing_boxes': int(np.maximum(per_image - max_boxes, 0).sum()),
  }
  return keep, counters


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
