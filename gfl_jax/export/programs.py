"""What the exported programs have in common: a file for each canvas."""

import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from gfl_jax.errors import UserError
from gfl_jax.evaluation import evaluator
from gfl_jax.models import build_detector
from gfl_jax.weights.trained import Found, Program

INPUTS = ('images', 'image_sizes', 'scales')
OUTPUTS = ('boxes', 'scores', 'classes', 'valid', 'edge_std')


def make_function(config: Any) -> Callable[..., dict[str, Any]]:
  """The pure function that is exported: (variables, batch) -> what `Found` holds."""
  # Nothing is computed again where there is no backward pass.
  detector = build_detector({**config, 'model': {**config.model, 'remat': ()}})
  detect = evaluator.make_detect(detector, config)

  def function(variables, batch):
    found = detect(variables, batch)._asdict()
    return {name: found[name] for name in OUTPUTS}

  return function


def file_name(canvas: tuple[int, int], suffix: str) -> str:
  """Of the program for a canvas (height, width)."""
  return f'detect_{canvas[0]}x{canvas[1]}.{suffix}'


def by_canvas(
  folder: pathlib.Path, described: Any, load_file: Callable[[pathlib.Path], Callable]
) -> Program:
  """One program out of those for each canvas; a file is loaded when it is needed.

  Args:
    folder: of the export.
    described: its `Manifest`.
    load_file: makes of a program's file a function of the batch that returns a
      mapping with what `Found` holds.
  """
  files = {tuple(p['canvas']): folder / p['file'] for p in described.programs}
  loaded: dict[tuple[int, ...], Callable] = {}

  def program(batch: Mapping[str, np.ndarray]) -> Found:
    canvas = batch['images'].shape[1:3]
    if canvas not in files:
      raise UserError(
        f'the batch has a canvas of (height, width) {canvas}, the programs of {folder}'
        f' have {sorted(files)}'
      )
    if canvas not in loaded:
      loaded[canvas] = load_file(files[canvas])
    found = loaded[canvas]({name: batch[name] for name in INPUTS})
    return Found(**{name: np.asarray(found[name]) for name in OUTPUTS})

  return program
