"""A detector as ONNX models, for onnxruntime and what else reads them.

The whole of it: normalising, network, decoding and suppression, for any batch size; one
file for each canvas, which holds the parameters too. jaxprs are written by
graph.py: no released converter takes the suppression or a symbolic batch and
installs beside this package's versions of jax and orbax.
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from gfl_jax.errors import UserError
from gfl_jax.export import manifest, programs
from gfl_jax.export.onnx.graph import BATCH, Port, WholeGraph, convert, is_static
from gfl_jax.export.onnx.operators import OPERATORS
from gfl_jax.export.onnx.suppression import class_aware_nms
from gfl_jax.export.stablehlo import batch_shapes
from gfl_jax.weights.trained import Program, Trained

OPSET = 18
_IR_VERSION = 9  # of files with this opset, so that older runtimes read them
_SUFFIX = 'onnx'


def in_float32(trained: Trained) -> Trained:
  """The detector with its trunk in float32: onnxruntime has no bfloat16 convolutions
  on CPUs. The parameters are float32 in any case."""
  config = trained.config.copy_and_resolve_references()
  config.model.dtype = 'float32'
  return dataclasses.replace(trained, config=config.lock())


def write(trained: Trained, folder: str | os.PathLike) -> None:
  """Writes the models and the manifest into an empty folder.

  Inputs and outputs are named as in the manifest.

  Raises:
    ValueError: the extra `onnx` is not installed; a trunk that is not float32; or the
      detector does what has no ONNX form here.
  """
  if trained.config.model.dtype != 'float32':
    raise UserError(
      f'model.dtype={trained.config.model.dtype!r} has no ONNX form: see in_float32'
    )
  folder, described = pathlib.Path(folder), []
  config = trained.config
  function = programs.make_function(config)
  native = class_aware_nms(
    iou_threshold=config.decode.nms_iou, num_classes=config.model.num_classes
  )
  operators = {**OPERATORS, 'jit:class_aware_nms': native}
  for canvas in manifest.canvases(config):
    name = programs.file_name(canvas, _SUFFIX)
    try:
      graph = convert(function, trained.variables, batch_shapes(canvas), operators)
    except NotImplementedError as error:
      raise UserError(
        f'this detector cannot be written as ONNX ({error}): export it as stablehlo'
      ) from error
    classes = {'class_names': trained.class_names, 'category_ids': trained.category_ids}
    (folder / name).write_bytes(make_model(graph, classes).SerializeToString())
    described.append({'file': name, 'canvas': list(canvas), 'batch': 'any'})
  manifest.write(
    folder,
    trained,
    format='onnx',
    names=[program['file'] for program in described],
    programs=described,
  )


def load(folder: str | os.PathLike, described: manifest.Manifest) -> Program:
  """The program of a folder whose manifest was read; onnxruntime runs it on the CPU.

  Raises:
    ValueError: the extra `onnx` is not installed, or onnxruntime refuses a file.
  """
  try:
    import onnxruntime
  except ImportError as error:
    raise _missing(error) from error

  def load_model(path: pathlib.Path):
    try:
      session = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])
    except Exception as error:  # its own kinds are no part of its interface
      raise UserError(f'onnxruntime cannot read {path}: {error}') from error
    names = [output.name for output in session.get_outputs()]
    return lambda batch: dict(zip(names, session.run(names, batch), strict=True))

  return programs.by_canvas(pathlib.Path(folder), described, load_model)


def _missing(error: ImportError) -> ValueError:
  return ValueError(f"ONNX needs an extra ({error}): pip install -e '.[onnx]'")


def make_model(graph: WholeGraph, properties: Mapping[str, Any] | None = None) -> Any:
  """An onnx.ModelProto of a graph.

  Args:
    graph: from graph.convert.
    properties: kept in the file's metadata, as JSON.

  Raises:
    ValueError: the extra `onnx` is not installed.
  """
  try:
    import onnx
    from onnx import helper
  except ImportError as error:
    raise _missing(error) from error
  model = helper.make_model(
    _graph(graph, 'detector'),
    opset_imports=[helper.make_opsetid('', OPSET)],
    ir_version=_IR_VERSION,
    producer_name='gfl_jax',
  )
  properties = {k: json.dumps(v) for k, v in (properties or {}).items()}
  helper.set_model_props(model, properties)
  onnx.checker.check_model(model)
  return model


def _graph(graph: WholeGraph, name: str) -> Any:
  from onnx import helper, numpy_helper

  return helper.make_graph(
    [
      helper.make_node(n.operator, n.inputs, n.outputs, **_attributes(n.attributes))
      for n in graph.nodes
    ],
    name,
    [_port(port) for port in graph.inputs],
    [_port(port) for port in graph.outputs],
    [
      numpy_helper.from_array(np.asarray(array, order='C'), key)
      for key, array in graph.constants.items()
    ],
  )


def _attributes(attributes: Mapping[str, Any]) -> dict[str, Any]:
  from onnx import helper

  def value(x):
    if isinstance(x, WholeGraph):
      return _graph(x, 'body')
    return helper.np_dtype_to_tensor_dtype(x) if isinstance(x, np.dtype) else x

  return {key: value(x) for key, x in attributes.items()}


def _port(port: Port) -> Any:
  from onnx import helper

  sizes = [s if is_static([s]) else BATCH for s in port.shape]
  dtype = helper.np_dtype_to_tensor_dtype(port.dtype)
  return helper.make_tensor_value_info(port.name, dtype, sizes)
