"""Arithmetic, shapes and reductions as operators of ONNX; see operators.py."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gfl_jax.export.onnx.graph import (
  Graph,
  Outputs,
  Tensor,
  constant,
  int64,
  is_static,
)


def broadcasting(
  graph: Graph, operator: str, inputs: Sequence[Tensor], aval: Any, **attributes
) -> Tensor:
  """An operator that broadcasts its inputs; the result's own broadcast is put off.

  Args:
    graph: gets the node.
    operator: ONNX's name of it.
    inputs: of any ranks.
    aval: dtype and shape of the result.
    **attributes: of the node.
  """
  rank = max(len(x.stored) for x in inputs)
  sizes = [(1,) * (rank - len(x.stored)) + x.stored for x in inputs]
  stored = [
    next((s for s in axis if not is_static([s]) or s != 1), 1)
    for axis in zip(*sizes, strict=True)
  ]
  result = graph.op(operator, inputs, stored, aval.dtype, **attributes)
  return dataclasses.replace(result, shape=aval.shape)


def _elementwise(operator, graph, equation, inputs, **attributes) -> Tensor:
  return broadcasting(graph, operator, inputs, equation.outvars[0].aval, **attributes)


def _simple(*operators: str, **attributes) -> Callable:
  """One operator after the other, each with the dtype and shape of the result."""

  def apply(graph, equation, inputs):
    for operator in operators:
      inputs = [_elementwise(operator, graph, equation, inputs, **attributes)]
    return inputs

  return apply


def _logical(operator: str) -> Callable:
  def apply(graph, equation, inputs):
    need(all(x.dtype == bool for x in inputs), equation)
    return _elementwise(operator, graph, equation, inputs)

  return apply


def _is_finite(graph, equation, inputs):
  size = graph.op('Abs', inputs, inputs[0].stored)
  infinity = constant(np.array(np.inf, inputs[0].dtype))
  return _elementwise('Less', graph, equation, [size, infinity])


def _integer_pow(graph, equation, inputs):
  exponent = constant(np.array(equation.params['y'], inputs[0].dtype))
  return _elementwise('Pow', graph, equation, [*inputs, exponent])


def _select(graph, equation, inputs):
  which, *cases = inputs
  need(which.dtype == bool and len(cases) == 2, equation)
  return where(graph, which, cases[1], cases[0], equation.outvars[0].aval)


def where(graph: Graph, which: Tensor, yes: Tensor, no: Tensor, aval: Any) -> Tensor:
  """`yes` where `which` is true, else `no`; aval: dtype and shape of the result."""
  if aval.dtype != bool:
    return broadcasting(graph, 'Where', [which, yes, no], aval)
  # onnxruntime has no Where of booleans.
  other = broadcasting(graph, 'Not', [which], which)
  first = broadcasting(graph, 'And', [which, yes], aval)
  second = broadcasting(graph, 'And', [other, no], aval)
  return broadcasting(graph, 'Or', [first, second], aval)


def _max(graph, equation, inputs):
  kept = [x for x in inputs if x.array is None or x.array.ndim or x.array != 0]
  if len(kept) == 1 and kept[0].dtype == np.float32:
    # Runtimes fuse a Relu into the convolution before it.
    return _elementwise('Relu', graph, equation, kept)
  return _elementwise('Max', graph, equation, inputs)


def _clamp(graph, equation, inputs):
  low, value, high = inputs
  raised = _elementwise('Max', graph, equation, [value, low])
  return _elementwise('Min', graph, equation, [raised, high])


def _convert(graph, equation, inputs):
  value, dtype = inputs[0], equation.params['new_dtype']
  if value.dtype != np.uint8 or len(value.shape) != 4:
    return graph.cast(value, dtype)
  # Images become planes and are transposed back. onnxruntime moves that transposition
  # down to the first convolution, which undoes it, and so normalises plane by plane,
  # several times as fast. The planes come from Split and Concat, because it would
  # cancel a transposition here with the one that follows.
  images, height, width, channels = value.shape
  plane = (images, 1, height, width)
  parts = [graph.reshape(part, plane) for part in _split(graph, value, 3)]
  planes = graph.op('Concat', parts, (images, channels, height, width), axis=1)
  return graph.transpose(graph.cast(planes, dtype), (0, 2, 3, 1))


def _broadcast_in_dim(graph, equation, inputs):
  """Places the axes; nothing is repeated before an operator needs it."""
  shape, axes = equation.outvars[0].aval.shape, equation.params['broadcast_dimensions']
  value = inputs[0]
  sizes: list[Any] = [1] * len(shape)
  for axis, size in zip(axes, value.stored, strict=True):
    sizes[axis] = size
  if tuple(sizes) != value.stored:
    value = graph.reshape(dataclasses.replace(value, shape=value.stored), sizes)
  return dataclasses.replace(value, shape=tuple(shape))


def _reshape(graph, equation, inputs):
  need(equation.params.get('dimensions') is None, equation)
  return graph.reshape(graph.full(inputs[0]), equation.outvars[0].aval.shape)


def _squeeze(graph, equation, inputs):
  value, dropped = inputs[0], equation.params['dimensions']
  stored = [s for axis, s in enumerate(value.stored) if axis not in dropped]
  result = graph.reshape(dataclasses.replace(value, shape=value.stored), stored)
  return dataclasses.replace(result, shape=equation.outvars[0].aval.shape)


def _slice(graph, equation, inputs):
  value, params = graph.full(inputs[0]), equation.params
  strides = params['strides'] or [1] * len(value.shape)
  bounds = zip(params['start_indices'], params['limit_indices'], strides, strict=True)
  cut = [
    (axis, *bound)
    for axis, (bound, size) in enumerate(zip(bounds, value.shape, strict=True))
    if bound != (0, size, 1)
  ]
  need(all(is_static(part) for part in cut), equation)
  if not cut:
    return value
  axes, starts, stops, steps = (int64(x) for x in zip(*cut, strict=True))
  inputs = [value, starts, stops, axes, steps]
  return graph.op('Slice', inputs, equation.outvars[0].aval.shape)


def _concatenate(graph, equation, inputs, axis=None):
  axis = equation.params['dimension'] if axis is None else axis
  parts, shape = [graph.full(x) for x in inputs], equation.outvars[0].aval.shape
  return graph.op('Concat', parts, shape, axis=int(axis))


def _stack(graph, equation, inputs):
  axis, shape = equation.params['axis'], equation.outvars[0].aval.shape
  single = [*shape[:axis], 1, *shape[axis + 1 :]]
  parts = [graph.reshape(graph.full(x), single) for x in inputs]
  return _concatenate(graph, equation, parts, axis)


def _unstack(graph, equation, inputs):
  parts = _split(graph, graph.full(inputs[0]), equation.params['axis'])
  out = [v.aval.shape for v in equation.outvars]
  return [graph.reshape(x, shape) for x, shape in zip(parts, out, strict=True)]


def _split(graph: Graph, value: Tensor, axis: int) -> list[Tensor]:
  """Parts of size 1 along an axis."""
  sizes = [1] * value.shape[axis]
  shape = (*value.shape[:axis], 1, *value.shape[axis + 1 :])
  outputs = [(value.dtype, shape)] * len(sizes)
  return graph.node('Split', [value, int64(sizes)], outputs, axis=axis)


def _tile(graph, equation, inputs):
  repeats = int64(equation.params['reps'])
  shape = equation.outvars[0].aval.shape
  return graph.op('Tile', [graph.full(inputs[0]), repeats], shape)


def _pad(graph, equation, inputs):
  value, fill = inputs
  low, high, between = zip(*equation.params['padding_config'], strict=True)
  need(not any(between) and min(*low, *high) >= 0, equation)
  inputs = [graph.full(value), int64((*low, *high)), fill]
  return graph.op('Pad', inputs, equation.outvars[0].aval.shape)


def _reduce(operator: str, *, through: Any = None) -> Callable:
  """through: the dtype in which booleans are reduced."""

  def apply(graph, equation, inputs):
    out, axes = equation.outvars[0].aval, int64(equation.params['axes'])
    value = graph.full(inputs[0])
    value = graph.cast(value, through) if through else value
    return graph.cast(
      graph.op(operator, [value, axes], out.shape, keepdims=0), out.dtype
    )

  return apply


def _argmax(graph, equation, inputs):
  (axis,), out = equation.params['axes'], equation.outvars[0].aval
  ends = {'axis': int(axis), 'keepdims': 0}
  index = graph.op('ArgMax', [graph.full(inputs[0])], out.shape, np.int64, **ends)
  return graph.cast(index, out.dtype)


def _top_k(graph, equation, inputs):
  values, indices = (v.aval for v in equation.outvars)
  best, where = graph.node(
    'TopK',
    [graph.full(inputs[0]), int64([equation.params['k']])],
    [(values.dtype, values.shape), (np.int64, indices.shape)],
    axis=int(equation.params['axis']),
  )
  return [best, graph.cast(where, indices.dtype)]


def need(supported: bool, equation: Any) -> None:
  """Raises NotImplementedError unless an equation is of a form that is known."""
  if not supported:
    raise NotImplementedError(f'no ONNX form is known of this use: {equation}')


# ONNX has the same names for these. Its Div of integers rounds towards zero, too.
_SAME_NAMES = 'abs add div exp floor log min mul neg sign sqrt sub tanh'.split()

ARRAY_OPERATORS: dict[str, Callable[[Graph, Any, list[Tensor]], Outputs]] = {
  **{name: _simple(name.capitalize()) for name in _SAME_NAMES},
  'and': _logical('And'),
  'argmax': _argmax,
  'broadcast_in_dim': _broadcast_in_dim,
  'clamp': _clamp,
  'concatenate': _concatenate,
  'convert_element_type': _convert,
  'copy': lambda graph, equation, inputs: inputs,
  'eq': _simple('Equal'),
  'ge': _simple('GreaterOrEqual'),
  'gt': _simple('Greater'),
  'integer_pow': _integer_pow,
  'is_finite': _is_finite,
  'le': _simple('LessOrEqual'),
  'logistic': _simple('Sigmoid'),
  'lt': _simple('Less'),
  'max': _max,
  'ne': _simple('Equal', 'Not'),
  'not': _logical('Not'),
  'or': _logical('Or'),
  'pad': _pad,
  'reduce_and': _reduce('ReduceMin', through=np.int32),
  'reduce_max': _reduce('ReduceMax'),
  'reduce_min': _reduce('ReduceMin'),
  'reduce_or': _reduce('ReduceMax', through=np.int32),
  'reduce_sum': _reduce('ReduceSum'),
  'rem': _simple('Mod', fmod=1),  # of the sign of the number that is divided
  'reshape': _reshape,
  'rsqrt': _simple('Sqrt', 'Reciprocal'),
  'select_n': _select,
  'slice': _slice,
  'square': lambda graph, equation, inputs: _elementwise(
    'Mul', graph, equation, inputs * 2
  ),
  'squeeze': _squeeze,
  'stack': _stack,
  'stop_gradient': lambda graph, equation, inputs: inputs,
  'tile': _tile,
  'top_k': _top_k,
  'transpose': lambda graph, equation, inputs: graph.transpose(
    inputs[0], equation.params['permutation']
  ),
  'unstack': _unstack,
}
