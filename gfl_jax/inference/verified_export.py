"""An export that appears only after it was compared with its run."""

import contextlib
import importlib
import json
import os
import pathlib
import shutil
from collections.abc import Sequence
from typing import Any

import numpy as np

from gfl_jax.errors import UserError, storage_errors
from gfl_jax.export import manifest
from gfl_jax.inference import verification
from gfl_jax.weights.trained import Trained
from gfl_jax.weights.trees import named_leaves


def write(
  trained: Trained, format: str, out: str | os.PathLike, *, images: Sequence[str] = ()
) -> dict[str, Any]:
  """Exports a detector to a folder once the export is known to equal it.

  Parameters are read back and compared bit for bit. Programs are loaded and run on
  images, on each canvas. If anything fails, the folder stays as it was. ONNX is
  exported and compared with a trunk in float32.

  Args:
    trained: the detector.
    format: 'params', 'stablehlo' or 'onnx'.
    out: the folder, made if missing; an export in it is replaced.
    images: files, folders or patterns; if empty, the evaluation set of the run.

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
    part.mkdir(parents=True)
  try:
    # A format's packages are imported only for it: those of onnx are an extra.
    module = importlib.import_module(f'gfl_jax.export.{format}')
    if format == 'onnx':
      trained = module.in_float32(trained)
    module.write(trained, part)
    loaded = module.load(part, manifest.read(part))
    if format == 'params':
      result = _compare_params(trained, loaded)
    else:
      result = verification.compare(trained, loaded, placed, precise=format == 'onnx')
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
  others = {path.name for path in out.iterdir()}
  with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
    content = json.loads((out / manifest.NAME).read_text())
    others -= {manifest.NAME, *content['files']}
  if others:
    raise UserError(
      f'--out={out} holds something else ({", ".join(sorted(others)[:5])}): give'
      ' another folder'
    )


def _compare_params(trained: Trained, loaded: Trained) -> dict[str, Any]:
  content = lambda leaf: (leaf.dtype, leaf.shape, np.asarray(leaf).tobytes())
  expected, actual = (
    {name: content(leaf) for name, leaf in named_leaves(x.variables).items()}
    for x in (trained, loaded)
  )
  if expected != actual or loaded.config.to_json() != trained.config.to_json():
    raise UserError('the exported parameters are not those of the run: export again')
  return {'arrays_equal_bit_for_bit': len(actual)}
