"""What the terminal shows while data are prepared: progress bars, no library notes."""

import contextlib
import faulthandler
import io
import logging
import os
import tempfile
from collections.abc import Iterable, Iterator
from typing import Any

import tensorflow_datasets as tfds
import tqdm


@contextlib.contextmanager
def hold_back_stderr() -> Iterator[None]:
  """Holds back all writes to stderr, also those of C++; an exception prints them.

  For the start of TensorFlow, which reports missing GPUs before any of its settings,
  TF_CPP_MIN_LOG_LEVEL included, can silence it. If the process crashes, for example
  because the processor is too old, a traceback is printed but the held text is lost.
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
def silence_tfds() -> Iterator[None]:
  """Keeps TFDS from printing notes and from showing progress bars of its own."""
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


def progress_bar(
  total: int, description: str, unit: str, items: Iterable[Any] | None = None
) -> tqdm.tqdm:
  """A bar that disappears at its end; it passes the items through, if there are any.

  It is hidden where the package logs no INFO messages, as on all hosts but the first.
  """
  return tqdm.tqdm(
    items,
    total=total,
    desc=description,
    unit=unit,
    leave=False,
    position=0,  # a bar that an error left open must not push this one down
    disable=logging.getLogger('gfl_jax').level > logging.INFO,
  )
