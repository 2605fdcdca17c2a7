"""A detector as programs of StableHLO, which jax alone runs, on CPU, GPU and TPU.

Images to detections, with normalising, decoding and suppression; any batch size. The
parameters lie beside, once for all canvases. jax reads a program for at least six
months after it was written (docs.jax.dev/en/latest/export), and not before its version.
"""

import os
import pathlib

import jax
import jax.numpy as jnp
from safetensors.numpy import load_file

from gfl_jax.errors import UserError
from gfl_jax.export import manifest, params, programs
from gfl_jax.weights.trained import Program, Trained

PLATFORMS = ('cpu', 'cuda', 'tpu')
_SUFFIX = 'stablehlo'


def write(trained: Trained, folder: str | os.PathLike) -> None:
  """Writes the programs, `weights.safetensors` and the manifest into an empty folder.

  A file is what `jax.export.deserialize` reads: a function (weights, batch) -> found,
  where `weights` are the arrays of `weights.safetensors` by their names, and `batch`
  and `found` are dicts of arrays as the manifest has them.
  """
  folder = pathlib.Path(folder)
  weights = params.write_weights(trained, folder)
  function = programs.make_function(trained.config)

  def detect(weights, batch):
    return function(params.nested(weights), batch)

  shapes = {
    name: jax.ShapeDtypeStruct(array.shape, array.dtype)
    for name, array in weights.items()
  }
  described = []
  for canvas in manifest.canvases(trained.config):
    name = programs.file_name(canvas, _SUFFIX)
    exported = jax.export.export(jax.jit(detect), platforms=PLATFORMS)(
      shapes, batch_shapes(canvas)
    )
    (folder / name).write_bytes(exported.serialize())
    described.append({'file': name, 'canvas': list(canvas), 'batch': 'any'})
  manifest.write(
    folder,
    trained,
    format='stablehlo',
    names=[params.FILE, *(program['file'] for program in described)],
    programs=described,
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
    try:
      call = jax.jit(jax.export.deserialize(bytearray(path.read_bytes())).call)
    except Exception as error:  # flatbuffers and MLIR raise of many kinds
      raise UserError(f'jax {jax.__version__} cannot read {path}: {error}') from error
    return lambda batch: jax.device_get(call(weights, batch))

  return programs.by_canvas(folder, described, load_program)


def batch_shapes(canvas: tuple[int, int]) -> dict[str, jax.ShapeDtypeStruct]:
  """Shapes of a batch of any size on a canvas (height, width)."""
  (size,) = jax.export.symbolic_shape('batch')
  return {
    'images': jax.ShapeDtypeStruct((size, *canvas, 3), jnp.uint8),
    'image_sizes': jax.ShapeDtypeStruct((size, 2), jnp.int32),
    'scales': jax.ShapeDtypeStruct((size, 2), jnp.float32),
  }
