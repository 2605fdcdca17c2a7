"""A TFDS data set written shard by shard, so that a killed preparation can continue.

All is written to a hidden folder beside the place where TFDS looks, and moved there at
the end: what TFDS finds is complete. A shard is finished when its facts, which hold its
SHA-256, are written after it; a later run checks that before it keeps the shard. The
same input gives the same bytes, interrupted or not. At the end a file SHA256SUMS, which
`sha256sum -c` reads, is written beside the records.
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
from gfl_jax.data import records, terminal
from gfl_jax.errors import StorageError, UserError

with terminal.hold_back_stderr():  # TFDS would import it later
  import tensorflow as tf

_LOG = logging.getLogger(__name__)

IMAGES_PER_SHARD = 1024  # some 170 MB of COCO
SUMS = 'SHA256SUMS'


Note = dict[str, Any]  # json about one image; empty for most


class Shard(NamedTuple):
  """The facts of a finished shard; notes: the notes that are not empty."""

  name: str
  num_examples: int
  num_bytes: int
  sha256: str
  notes: list[Note]


def prepare(
  info: Any,
  splits: Mapping[str, Sequence[Any]],
  make: Callable[[str, Any], tuple[dict[str, Any] | None, Note]],
  *,
  mark: str,
  check: Callable[[dict[str, list[Shard]]], None],
) -> None:
  """Writes a data set to `info.data_dir`, unless it is there already.

  If another process prepares the same, this one waits for it. If this raises, finished
  shards are kept for the next call.

  Args:
    info: TFDS's DatasetInfo, to be completed.
    splits: an entry for each image of each split; the order of the records is drawn.
    make: called in threads with the split's name and an entry; gives its example, or
      None to leave it out, and a note.
    mark: differs for different input: only shards with the same mark are kept.
    check: called after each shard with each split's shards so far; may raise to end the
      preparation, and may complete info.

  Raises:
    ValueError: bad input, from make and check.
    OSError: it cannot be written.
  """
  if '://' in info.data_dir:
    raise UserError(
      f'{info.data_dir}: prepare the data on a local disk, then copy the folder there'
    )
  final = pathlib.Path(info.data_dir)
  final.parent.mkdir(parents=True, exist_ok=True)
  folder = final.with_name(f'.{final.name}.incomplete-{mark[:16]}')
  with _locked(final.with_name(f'.{final.name}.lock')):
    for other in final.parent.glob(f'.{final.name}.incomplete-*'):
      if other != folder or final.exists():  # of older input, or no longer needed
        shutil.rmtree(other)
    if final.exists():
      return
    if done := len(list(folder.glob('facts/*.json'))):
      _LOG.info('Continuing %s: %d shards are done already.', final, done)
    facts = _write_shards(info, splits, make, folder, check)
    _complete(info, facts, folder / 'data')
    os.sync()  # not even a power failure may leave incomplete files at `final`
    (folder / 'data').replace(final)
    shutil.rmtree(folder)


def verify(folder: Any) -> int:
  """Compares the files of a prepared data set with its SHA256SUMS.

  Args:
    folder: a path of pathlib or epath.

  Returns:
    The number of files; 0 if `prepare` did not write the data set.

  Raises:
    ValueError: a file is missing or was changed.
  """
  if not (folder / SUMS).exists():
    return 0
  lines = (folder / SUMS).read_text().splitlines()
  for line in terminal.progress_bar(len(lines), 'verifying', 'file', lines):
    expected, name = line.split('  ', 1)
    path = folder / name
    if not path.exists() or _sha256(path) != expected:
      raise UserError(
        f'{path} is missing or damaged: it does not match {SUMS}. Delete {folder} and'
        ' prepare it again'
      )
  return len(lines)


@contextlib.contextmanager
def _locked(path: pathlib.Path) -> Iterator[None]:
  """Keeps other processes from preparing the same."""
  with contextlib.ExitStack() as stack:
    if not stack.enter_context(files.lock(path, wait=False)):
      _LOG.info('Waiting for %s, which prepares %s.', files.holder(path), path.parent)
      stack.enter_context(files.lock(path, wait=True))
    yield


def _write_shards(info, splits, make, folder, check) -> dict[str, list[Shard]]:
  for part in ('data', 'facts'):
    (folder / part).mkdir(parents=True, exist_ok=True)
  facts: dict[str, list[Shard]] = {split: [] for split in splits}
  total = sum(len(entries) for entries in splits.values())
  with (
    terminal.progress_bar(total, 'preparing', 'image') as progress,
    futures.ThreadPoolExecutor(records.num_cores()) as pool,
  ):
    # The smallest split first: its errors show before hours of work.
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
          done = _write_shard(folder, name, made, progress)
        else:
          progress.update(len(rows))
        facts[split].append(done)
        check(facts)
  return facts


def _serialize(features, make, split: str, entry) -> tuple[bytes | None, Note]:
  example, note = make(split, entry)
  if example is None:
    return None, note
  record = features.serialize_example(example)
  # Serialize it again: only here is the order of its features fixed.
  parsed = tf.train.Example.FromString(record)
  return parsed.SerializeToString(deterministic=True), note


def _write_shard(folder: pathlib.Path, name: str, made, progress) -> Shard:
  path, part = folder / 'data' / name, folder / 'facts' / f'{name}.part'
  count, notes = 0, []
  try:
    with tf.io.TFRecordWriter(str(part)) as writer:
      for record, note in made:
        if record is not None:
          writer.write(record)
          count += 1
        if note:
          notes.append(note)
        progress.update()
  except tf.errors.OpError as error:
    raise StorageError(f'{part} cannot be written: {error.message}') from error
  shard = Shard(name, count, part.stat().st_size, _sha256(part), notes)
  part.replace(path)
  files.atomic_write(folder / 'facts' / f'{name}.json', json.dumps(shard._asdict()))
  return shard


def _known(folder: pathlib.Path, name: str) -> Shard | None:
  """The facts of a shard, if it is finished and unchanged."""
  path = folder / 'data' / name
  try:
    shard = Shard(**json.loads((folder / 'facts' / f'{name}.json').read_bytes()))
    return shard if _sha256(path) == shard.sha256 else None
  except (OSError, ValueError, TypeError):
    return None


def _complete(info, facts: dict[str, list[Shard]], data: pathlib.Path) -> None:
  """Writes the files that TFDS needs beside the records, and the checksums."""
  written = {shard.name for shards in facts.values() for shard in shards}
  for path in data.iterdir():
    if path.name not in written:  # left by a run that was killed right here
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
