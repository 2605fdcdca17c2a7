"""An export: written beside its place, compared with its run, then put there whole."""

import contextlib
import importlib
import json
import os
import pathlib
import shutil
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import tqdm
from flax import traverse_util

from gfl_jax.errors import UserError, storage_errors
from gfl_jax.export import manifest
from gfl_jax.inference import runs, verification
from gfl_jax.inference.inputs import Placed
from gfl_jax.weights.trained import Program, Trained


def export(
  trained: Trained,
  format: str,
  out: str | os.PathLike,
  *,
  images: Sequence[str] = (),
) -> dict[str, Any]:
  """Exports a detector to a folder, once the export is known to be equal to it.

  Parameters are read back and compared bit for bit. Programs are loaded and run on
  images, on each canvas. If anything fails, the folder stays as it was. ONNX is
  exported, and compared, with a trunk in float32.

  Args:
    trained: the detector.
    format: 'params', 'stablehlo' or 'onnx'.
    out: the folder, made if missing; an export that is there already is replaced.
    images: files, folders or patterns; none takes the evaluation set of the run.

  Returns:
    The verification, as the manifest has it.

  Raises:
    ValueError: an unknown format, a folder that holds something else, no images to
      compare on, an export that is not equal, or what the format's writer raises.
  """
  if format not in manifest.FORMATS:
    raise UserError(f'{format=} is not one of {manifest.FORMATS}')
  out = pathlib.Path(out)
  _check_out(out)
  placed = []
  if format != 'params':
    placed = verification.sample_images(trained.config, images, leave_out=out)
  part = out.absolute().with_name(f'.{out.name}.part.{os.getpid()}')
  with storage_errors(out):
    part.parent.mkdir(parents=True, exist_ok=True)
    part.mkdir()
  try:
    # Imported only where asked for: the packages of one format are an extra.
    module = importlib.import_module(f'gfl_jax.export.{format}')
    if format == 'onnx':
      trained = module.in_float32(trained)
    module.write(trained, part)
    loaded = module.load(part, manifest.read(part))
    if format == 'params':
      result = _verify_params(trained, loaded)
    else:
      result = _verify_program(trained, loaded, placed, precise=format == 'onnx')
    manifest.record_verification(part, result)
    if out.exists():
      shutil.rmtree(out)
    part.rename(out)
  finally:
    shutil.rmtree(part, ignore_errors=True)
  return result


def _check_out(out: pathlib.Path) -> None:
  """Raises a ValueError unless `out` is free, or holds an export and nothing else."""
  if out.is_symlink():
    raise UserError(f'--out={out} is a link to {out.readlink()}: give that folder')
  if not out.exists():
    return
  if not out.is_dir():
    raise UserError(f'--out={out} is a file: give a folder')
  there = {path.name for path in out.iterdir()}
  with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
    content = json.loads((out / manifest.NAME).read_text())
    there -= {manifest.NAME, *content['files']}
  if there:
    raise UserError(
      f'--out={out} holds something else ({", ".join(sorted(there)[:5])}): give another'
      ' folder'
    )


def _verify_params(trained: Trained, loaded: Trained) -> dict[str, Any]:
  flat = lambda tree: traverse_util.flatten_dict(tree, sep='/')
  content = lambda leaf: (leaf.dtype, leaf.shape, leaf.tobytes())
  expected, actual = (
    {name: content(np.asarray(leaf)) for name, leaf in flat(x.variables).items()}
    for x in (trained, loaded)
  )
  if expected != actual or loaded.config.to_json() != trained.config.to_json():
    raise UserError('the exported parameters are not those of the run')
  return {'arrays_equal_bit_for_bit': len(actual)}


def _verify_program(
  trained: Trained, program: Program, placed: Sequence[Placed], *, precise: bool
) -> dict[str, Any]:
  """Compares what an exported program finds with what the run's detector finds.

  Args:
    trained: the run's.
    program: the export's.
    placed: images.
    precise: whether the program multiplies in full float32 on any device. A jitted
      function does so on GPUs and TPUs only if it is told to.
  """
  config = trained.config
  comparison = verification.Comparison(config.decode.score_threshold)
  reference = runs.make_program(trained)
  batches = list(verification.batches_on_each_canvas(config, placed))
  with jax.default_matmul_precision('highest' if precise else 'default'):
    for batch in tqdm.tqdm(batches, desc='compare', unit='batch'):
      comparison.add(batch, reference(batch), program(batch))
  return comparison.result() | {'device': jax.devices()[0].device_kind}
