"""A TFDS data set written shard by shard, so that a killed preparation goes on.

Everything is written beside the place where TFDS looks, in a folder that is moved there
when all is done: what is found there is whole. A shard counts as done when its facts,
its SHA-256 among them, are written after it; who goes on checks it first. The same
input gives the same bytes, killed or not. At the end SHA256SUMS, which `sha256sum -c`
reads, lies with the files.
"""

import contextlib
import functools
import hashlib
import json
import logging
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent import futures
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core.splits import SplitDict

from gfl_jax import files
from gfl_jax.data import console, records
from gfl_jax.errors import StorageError, UserError

with console.suppress_import_noise():  # TFDS itself imports it only when it is used
  import tensorflow as tf

_LOG = logging.getLogger(__name__)

IMAGES_PER_SHARD = 1024  # some 170 MB of COCO
SUMS = 'SHA256SUMS'


class Made(NamedTuple):
  """What became of an image.

  Attributes:
    example: as the builder's features encode it; None if the image is left out.
    problem: why it is left out.
    degenerate_boxes: how many of its boxes are left out.
    outside_boxes: how many reach far beyond it.
    outside_example: one of these, in a user's words; empty without any.
  """

  example: dict[str, Any] | None
  problem: str = ''
  degenerate_boxes: int = 0
  outside_boxes: int = 0
  outside_example: str = ''


class Facts(NamedTuple):
  """What is known of a shard that is done."""

  name: str
  num_examples: int
  num_bytes: int
  degenerate_boxes: int
  outside_boxes: int
  outside_example: str
  problems: list[str]
  sha256: str


def prepare(
  info: Any,
  splits: Mapping[str, Sequence[Any]],
  make: Callable[[str, Any], Made],
  *,
  mark: str,
  check: Callable[[dict[str, list[Facts]]], None],
) -> None:
  """Writes a data set to `info.data_dir`, or goes on with that, or finds it there.

  Another process that prepares the same is waited for.

  Args:
    info: TFDS's DatasetInfo, to be completed.
    splits: what the images of each split are made of; the records are in another,
      drawn order.
    make: an image's example, called in threads with the split and its entry.
    mark: differs for different input: only what has the same mark is gone on with.
    check: called after each shard with the facts of each split's shards so far; raises
      what ends the preparation, and may complete info.

  Raises:
    ValueError: bad input, as make and check tell it.
    OSError: it cannot be written.
  In both cases the shards that are done are kept, for the next call.
  """
  final = _local_path(info.data_dir)
  final.parent.mkdir(parents=True, exist_ok=True)
  folder = final.with_name(f'.{final.name}.incomplete-{mark[:16]}')
  with _locked(final.with_name(f'.{final.name}.lock')):
    for other in final.parent.glob(f'.{final.name}.incomplete-*'):
      if other != folder or final.exists():  # of input that has changed since, or done
        shutil.rmtree(other)
    if final.exists():
      return
    if done := len(list(folder.glob('facts/*.json'))):
      _LOG.info('Going on with %s: %d shards are done already.', final, done)
    facts = _write_shards(info, splits, make, folder, check)
    _complete(info, facts, folder / 'data')
    os.sync()  # a power failure, too, must not leave what looks whole
    (folder / 'data').replace(final)
    shutil.rmtree(folder)


def verify(folder: Any) -> int:
  """Compares the files of a prepared data set with its SHA256SUMS.

  Args:
    folder: of pathlib or epath.

  Returns:
    The number of files; 0 if the data set is not of `prepare`.

  Raises:
    ValueError: a file that is missing or is not what was written.
  """
  if not (folder / SUMS).exists():
    return 0
  lines = (folder / SUMS).read_text().splitlines()
  for line in console.track(lines, console.bar(len(lines), 'verifying', 'file')):
    expected, name = line.split('  ', 1)
    path = folder / name
    if not path.exists() or _sha256(path) != expected:
      raise UserError(
        f'{path} is missing or damaged, as {SUMS} tells: delete {folder} and prepare '
        'it again'
      )
  return len(lines)


def _local_path(path: str) -> pathlib.Path:
  if '://' in path:
    raise UserError(
      f'{path}: data is prepared on a local disk; then copy its folder there'
    )
  return pathlib.Path(path)


@contextlib.contextmanager
def _locked(path: pathlib.Path) -> Iterator[None]:
  """Within it no other process prepares the same."""
  with contextlib.ExitStack() as stack:
    if not stack.enter_context(files.lock(path, wait=False)):
      _LOG.info('%s prepares %s: waiting for it.', files.holder(path), path.parent)
      stack.enter_context(files.lock(path, wait=True))
    yield


def _write_shards(info, splits, make, folder, check) -> dict[str, list[Facts]]:
  for part in ('data', 'facts'):
    (folder / part).mkdir(parents=True, exist_ok=True)
  facts: dict[str, list[Facts]] = {split: [] for split in splits}
  total = sum(len(entries) for entries in splits.values())
  with (
    console.bar(total, 'preparing', 'image') as progress,
    futures.ThreadPoolExecutor(records.num_cores()) as pool,
  ):
    # The smallest first: what is wrong with it shows before hours of work.
    for split, entries in sorted(splits.items(), key=lambda item: len(item[1])):
      order = np.random.default_rng(0).permutation(len(entries))
      cuts = range(IMAGES_PER_SHARD, len(order), IMAGES_PER_SHARD)
      shards = np.split(order, cuts)
      for number, rows in enumerate(shards):
        name = f'{info.name}-{split}.tfrecord-{number:05d}-of-{len(shards):05d}'
        done = _known(folder, name)
        if done is None:
          serialize = functools.partial(_serialize, info.features, make, split)
          made = pool.map(serialize, (entries[row] for row in rows))
          done = _write_shard(folder, name, console.track(made, progress))
        else:
          progress.update(len(rows))
        facts[split].append(done)
        check(facts)
  return facts


def _serialize(features, make, split: str, entry) -> tuple[bytes | None, Made]:
  made = make(split, entry)
  if made.example is None:
    return None, made
  record = features.serialize_example(made.example)
  # Again, since a map's order is else not fixed: the same input, the same bytes.
  example = tf.train.Example.FromString(record)
  return example.SerializeToString(deterministic=True), made


def _write_shard(folder: pathlib.Path, name: str, made) -> Facts:
  path, part = folder / 'data' / name, folder / 'facts' / f'{name}.part'
  problems, degenerate_boxes, outside_boxes, count = [], 0, 0, 0
  outside_example = ''
  try:
    with tf.io.TFRecordWriter(str(part)) as writer:
      for record, one in made:
        degenerate_boxes += one.degenerate_boxes
        outside_boxes += one.outside_boxes
        outside_example = outside_example or one.outside_example
        if record is None:
          problems.append(one.problem)
          continue
        writer.write(record)
        count += 1
  except tf.errors.OpError as error:
    raise StorageError(f'{part} cannot be written: {error.message}') from error
  size = part.stat().st_size
  facts = Facts(
    name,
    count,
    size,
    degenerate_boxes,
    outside_boxes,
    outside_example,
    problems,
    _sha256(part),
  )
  part.replace(path)
  files.atomic_write(folder / 'facts' / f'{name}.json', json.dumps(facts._asdict()))
  return facts


def _known(folder: pathlib.Path, name: str) -> Facts | None:
  """Of a shard that is done and is what was written."""
  path = folder / 'data' / name
  try:
    facts = Facts(**json.loads((folder / 'facts' / f'{name}.json').read_bytes()))
    whole = _sha256(path) == facts.sha256
  except (OSError, ValueError, TypeError):
    return None
  return facts if whole else None


def _complete(info, facts: dict[str, list[Facts]], data: pathlib.Path) -> None:
  """Writes what TFDS wants beside the records, and the checksums."""
  written = {shard.name for shards in facts.values() for shard in shards}
  for path in data.iterdir():
    if path.name not in written:  # of one that was killed just here
      path.unlink()
  infos = [
    tfds.core.SplitInfo(
      name=split,
      shard_lengths=[shard.num_examples for shard in shards],
      num_bytes=sum(shard.num_bytes for shard in shards),
    )
    for split, shards in facts.items()
  ]
  info.set_file_format('tfrecord')
  info.set_splits(SplitDict(infos))
  info.write_to_directory(data)
  names = sorted(path.name for path in data.iterdir())
  lines = [f'{_sha256(data / name)}  {name}\n' for name in names]
  files.atomic_write(data / SUMS, ''.join(lines))


def _sha256(path: Any) -> str:
  with path.open('rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()
