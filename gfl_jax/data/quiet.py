"""Preparing data with nothing on the screen but one progress bar and our own lines."""

import contextlib
import io
import logging
from collections.abc import Iterable, Iterator
from typing import TypeVar

import tensorflow_datasets as tfds
import tqdm

Item = TypeVar('Item')


@contextlib.contextmanager
def builders() -> Iterator[None]:
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


def ticking(items: Iterable[Item], progress: tqdm.tqdm) -> Iterator[Item]:
  """Yields the items, each a tick of a bar that other iterators may share."""
  for item in items:
    yield item
    progress.update()
  if progress.n == progress.total:
    progress.close()
