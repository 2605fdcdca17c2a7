"""Detectors as programs: the exported function, and one file for each canvas."""

import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from gfl_jax.errors import UserError
from gfl_jax.evaluation import evaluator
from gfl_jax.evaluation.decode import Detections
from gfl_jax.export import manifest
from gfl_jax.models import build_detector
from gfl_jax.weights.trained import Program, Trained, batch_shapes


def make_function(config: Any) -> Callable[..., dict[str, Any]]:
  """The pure function (variables, batch) -> outputs, as in `manifest.OUTPUTS`."""
  # Without a backward pass, nothing has to be recomputed to save memory.
  detector = build_detector({**config, 'model': {**config.model, 'remat': ()}})
  detect = evaluator.make_detect(detector, config)

  def function(variables, batch):
    found = detect(variables, batch)._asdict()
    return {name: found[name] for name in manifest.OUTPUTS}

  return function


def jitted(trained: Trained) -> Program:
  """A detector as a program of this process, compiled at the first batch of a shape."""
  detect = jax.jit(make_function(trained.config))
  variables = jax.device_put(trained.variables)
  return lambda batch: Detections(**jax.device_get(detect(variables, dict(batch))))


def one_image(found: Detections, row: int) -> dict[str, np.ndarray]:
  """The fields of the detections in one image of a batch, without unused slots."""
  valid = np.asarray(found.valid)[row]
  names = ('boxes', 'scores', 'classes', 'edge_std')
  return {name: np.asarray(getattr(found, name))[row][valid] for name in names}


def write(
  folder: pathlib.Path,
  trained: Trained,
  serialize: Callable[[dict[str, jax.ShapeDtypeStruct]], bytes],
  *,
  format: str,
) -> None:
  """Writes a program for each canvas, and the manifest.

  Args:
    folder: of the export.
    trained: the detector.
    serialize: returns the content of a program's file for a batch of such shapes.
    format: one of `manifest.FORMATS`.
  """
  (any_size,) = jax.export.symbolic_shape('batch')
  described = []
  for height, width in manifest.canvases(trained.config):
    name = f'detect_{height}x{width}.{format}'
    (folder / name).write_bytes(serialize(batch_shapes(any_size, (height, width))))
    described.append({'file': name, 'canvas': [height, width], 'batch': 'any'})
  manifest.write(folder, trained, format=format, programs=described)


def by_canvas(
  folder: pathlib.Path,
  described: manifest.Manifest,
  load_file: Callable[[pathlib.Path], Callable],
  reader: str,
) -> Program:
  """The programs of an export as one; a file is loaded at the first batch for it.

  Args:
    folder: of the export.
    described: its manifest.
    load_file: returns the function of a program's file: batch -> outputs by name.
    reader: the package that reads the file, for errors.
  """
  files = {tuple(p['canvas']): folder / p['file'] for p in described.programs}
  loaded: dict[tuple[int, ...], Callable] = {}

  def program(batch: Mapping[str, np.ndarray]) -> Detections:
    canvas = batch['images'].shape[1:3]
    if canvas not in files:
      raise UserError(
        f'the batch has a canvas of (height, width) {canvas}, the programs of {folder}'
        f' have {sorted(files)}'
      )
    if canvas not in loaded:
      try:
        loaded[canvas] = load_file(files[canvas])
      except Exception as error:  # the readers raise many types
        raise UserError(f'{reader} cannot read {files[canvas]}: {error}') from error
    found = loaded[canvas]({name: batch[name] for name in manifest.INPUTS})
    return Detections(**{name: np.asarray(found[name]) for name in manifest.OUTPUTS})

  return program
