"""A detector as ONNX models, which onnxruntime and other runtimes read.

A model is the whole detector: normalizing, network, decoding and suppression, for any
batch size. There is one file for each canvas; each holds the parameters, too. graph.py
writes the jaxpr: no released converter takes the suppression or a symbolic batch and
installs beside this package's versions of jax and orbax.
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from gfl_jax.errors import UserError
from gfl_jax.export import manifest, programs
from gfl_jax.export.onnx.graph import convert, from_extra
from gfl_jax.export.onnx.operators import OPERATORS
from gfl_jax.export.onnx.suppression import class_aware_nms
from gfl_jax.weights.trained import Program, Trained

OPSET = 18
_IR_VERSION = 9  # of files with this opset, so that older runtimes read them


def in_float32(trained: Trained) -> Trained:
  """The detector with its trunk in float32, because onnxruntime has no bfloat16
  convolutions on CPUs. The parameters are float32 in any case."""
  config = trained.config.copy_and_resolve_references()
  config.model.dtype = 'float32'
  return dataclasses.replace(trained, config=config.lock())


def write(trained: Trained, folder: str | os.PathLike) -> None:
  """Writes the models and the manifest into an empty folder.

  The manifest names the inputs and outputs.

  Raises:
    ValueError: the extra `onnx` is not installed; a trunk that is not float32; or a
      part of the detector has no ONNX form here.
  """
  config = trained.config
  if config.model.dtype != 'float32':
    raise UserError(
      f'model.dtype={config.model.dtype!r} has no ONNX form: see in_float32'
    )
  function = programs.make_function(config)
  native = class_aware_nms(
    iou_threshold=config.decode.nms_iou, num_classes=config.model.num_classes
  )
  operators = {**OPERATORS, 'jit:class_aware_nms': native}
  classes = {'class_names': trained.class_names, 'category_ids': trained.category_ids}

  def serialize(batch) -> bytes:
    graph = convert(function, trained.variables, batch, operators)
    return make_model(graph, classes).SerializeToString()

  try:
    programs.write(pathlib.Path(folder), trained, serialize, format='onnx')
  except NotImplementedError as error:
    raise UserError(
      f'this detector cannot be written as ONNX ({error}): export it as stablehlo'
    ) from error


def load(folder: str | os.PathLike, described: manifest.Manifest) -> Program:
  """The program of a folder whose manifest was read; onnxruntime runs it on the CPU.

  Raises:
    ValueError: the extra `onnx` is not installed, or onnxruntime cannot read a file.
  """
  onnxruntime = from_extra('onnxruntime')

  def load_model(path: pathlib.Path):
    session = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])
    names = [output.name for output in session.get_outputs()]
    return lambda batch: dict(zip(names, session.run(names, batch), strict=True))

  return programs.by_canvas(pathlib.Path(folder), described, load_model, 'onnxruntime')


def make_model(graph: Any, properties: Mapping[str, Any]) -> Any:
  """An onnx.ModelProto, checked.

  Args:
    graph: from graph.convert.
    properties: kept in the file's metadata, as JSON.
  """
  helper, checker = from_extra('onnx.helper'), from_extra('onnx.checker')
  model = helper.make_model(
    graph,
    opset_imports=[helper.make_opsetid('', OPSET)],
    ir_version=_IR_VERSION,
    producer_name='gfl_jax',
  )
  helper.set_model_props(model, {k: json.dumps(v) for k, v in properties.items()})
  checker.check_model(model)
  return model
