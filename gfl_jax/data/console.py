"""Preparing data with nothing on the screen but one progress bar and our own lines."""

import contextlib
import faulthandler
import io
import logging
import os
import tempfile
from collections.abc import Iterable, Iterator
from typing import TypeVar

import tensorflow_datasets as tfds
import tqdm

Item = TypeVar('Item')


@contextlib.contextmanager
def suppress_import_noise() -> Iterator[None]:
  """Within it nothing is written to stderr, not by C++ either, unless it fails.

  For TensorFlow's start: it tells of GPUs that it does not find before any of its own
  settings, TF_CPP_MIN_LOG_LEVEL included, could silence it. A crash, as on a processor
  that it was not built for, cannot show what was held back, but shows where it was.
  """
  stderr = os.dup(2)
  shows_crashes = faulthandler.is_enabled()
  if not shows_crashes:
    faulthandler.enable(stderr)
  with tempfile.TemporaryFile() as held:
    os.dup2(held.fileno(), 2)
    try:
      yield
    except BaseException:
      held.seek(0)
      os.write(stderr, held.read())
      raise
    finally:
      os.dup2(stderr, 2)
      if not shows_crashes:
        faulthandler.disable()
      os.close(stderr)


@contextlib.contextmanager
def quiet_builders() -> Iterator[None]:
  """Within it TFDS prints no notes on its builders and shows no bars of its own."""
  logger = logging.getLogger('absl')
  level = logger.level
  logger.setLevel(logging.ERROR)
  tfds.disable_progress_bar()
  try:
    with contextlib.redirect_stdout(io.StringIO()):
      yield
  finally:
    tfds.enable_progress_bar()
    logger.setLevel(level)


def bar(total: int, description: str, unit: str) -> tqdm.tqdm:
  """A bar that leaves nothing behind, and keeps to its line.

  Without the position an older bar, left open by something that failed, would push
  it down the screen. Where the package's notes are not wanted, as on all hosts but the
  first, it is not shown.
  """
  return tqdm.tqdm(
    total=total,
    desc=description,
    unit=unit,
    leave=False,
    position=0,
    disable=logging.getLogger('gfl_jax').level > logging.INFO,
  )


def track(items: Iterable[Item], progress: tqdm.tqdm) -> Iterator[Item]:
  """Yields the items, each a tick of a bar that other iterators may share.

  The bar is closed at its last tick, or where the iteration is given up.
  """
  finished = False
  try:
    for item in items:
      yield item
      progress.update()
    finished = True
  finally:
    if not finished or progress.n == progress.total:
      progress.close()
