"""A detector as programs of StableHLO, which need only jax to run, on CPU, GPU and TPU.

A program turns images into detections: it normalizes, decodes and suppresses, for any
batch size. All programs share one file of parameters. jax reads a program for at least
six months after it was written (docs.jax.dev/en/latest/export); an older jax does not.
"""

import os
import pathlib

import jax
from safetensors.numpy import load_file

from gfl_jax.export import manifest, params, programs
from gfl_jax.weights.trained import Program, Trained

PLATFORMS = ('cpu', 'cuda', 'tpu')


def write(trained: Trained, folder: str | os.PathLike) -> None:
  """Writes the programs, `weights.safetensors` and the manifest into an empty folder.

  `jax.export.deserialize` reads a program: a function (weights, batch) -> outputs.
  `weights` are the arrays of `weights.safetensors` by name; `batch` and the outputs are
  dicts of arrays, which the manifest describes.
  """
  folder = pathlib.Path(folder)
  weights = params.write_weights(trained, folder)
  function = programs.make_function(trained.config)
  shapes = {k: jax.ShapeDtypeStruct(x.shape, x.dtype) for k, x in weights.items()}
  detect = jax.jit(lambda weights, batch: function(params.nested(weights), batch))
  export = jax.export.export(detect, platforms=PLATFORMS)
  programs.write(
    folder,
    trained,
    lambda batch: bytes(export(shapes, batch).serialize()),
    format='stablehlo',
  )


def load(folder: str | os.PathLike, described: manifest.Manifest) -> Program:
  """The program of a folder whose manifest was read.

  It is compiled at the first batch of each shape, on the platform of this process.

  Raises:
    ValueError: this jax cannot read a program, or not on this platform.
  """
  folder = pathlib.Path(folder)
  weights = jax.device_put(load_file(folder / params.FILE))

  def load_program(path: pathlib.Path):
    call = jax.jit(jax.export.deserialize(bytearray(path.read_bytes())).call)
    return lambda batch: jax.device_get(call(weights, batch))

  reader = f'jax {jax.__version__}'
  return programs.by_canvas(folder, described, load_program, reader)
