"""Arithmetic, shapes and reductions as operators of ONNX; see operators.py."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from gfl_jax.export.onnx.graph import Graph, Outputs, Tensor, constant, int64, is_static


def _broadcasting(
  operator: str, graph: Graph, equation: Any, inputs: Sequence[Tensor], **attributes
) -> Tensor:
  """An operator that broadcasts its inputs; the result's own broadcast is put off.

  Args:
    operator: ONNX's name of it.
    graph: gets the node.
    equation: its result has the dtype and shape of this one's.
    inputs: of any ranks.
    **attributes: of the node.
  """
  aval = equation.outvars[0].aval
  rank = max(len(x.stored) for x in inputs)
  sizes = [(1,) * (rank - len(x.stored)) + x.stored for x in inputs]
  stored = [
    next((s for s in axis if not is_static([s]) or s != 1), 1)
    for axis in zip(*sizes, strict=True)
  ]
  result = graph.op(operator, inputs, stored, aval.dtype, **attributes)
  return dataclasses.replace(result, shape=aval.shape)


def _simple(*operators: str, only: Any = None, **attributes) -> Callable:
  """One operator after the other, each with the dtype and shape of the result.

  Args:
    *operators: ONNX's names.
    only: the one dtype of the inputs that the operators are right for; None for any.
    **attributes: of each node.
  """

  def apply(graph, equation, inputs):
    need(only is None or all(x.dtype == only for x in inputs), equation)
    for operator in operators:
      inputs = [_broadcasting(operator, graph, equation, inputs, **attributes)]
    return inputs

  return apply


def _composed(function: Callable) -> Callable:
  """A primitive in terms of others: function(*arrays, **the primitive's parameters)."""
  return lambda graph, equation, inputs: graph.call(
    functools.partial(function, **equation.params), *inputs
  )


def _integer_pow(graph, equation, inputs):
  exponent = constant(np.array(equation.params['y'], inputs[0].dtype))
  return _broadcasting('Pow', graph, equation, [*inputs, exponent])


def _select(graph, equation, inputs):
  which, *cases = inputs
  need(which.dtype == bool and len(cases) == 2, equation)
  if cases[0].dtype == bool:  # onnxruntime has no Where of booleans
    return graph.call(lambda which, no, yes: (which & yes) | (~which & no), *inputs)
  return _broadcasting('Where', graph, equation, [which, *cases[::-1]])


def _max(graph, equation, inputs):
  kept = [x for x in inputs if x.array is None or x.array.ndim or x.array != 0]
  if len(kept) == 1 and kept[0].dtype == np.float32:
    # Runtimes fuse a Relu into the convolution before it.
    return _broadcasting('Relu', graph, equation, kept)
  return _broadcasting('Max', graph, equation, inputs)


def _convert(graph, equation, inputs):
  value, dtype = inputs[0], equation.params['new_dtype']
  if value.dtype != np.uint8 or len(value.shape) != 4:
    return graph.cast(value, dtype)
  # Images become planes and are transposed back. onnxruntime moves that transposition
  # down to the first convolution, which undoes it, and so normalizes plane by plane,
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


def _concatenate(graph, equation, inputs):
  axis, shape = int(equation.params['dimension']), equation.outvars[0].aval.shape
  return graph.op('Concat', [graph.full(x) for x in inputs], shape, axis=axis)


def _stack(*arrays, axis):
  return jnp.concatenate([jnp.expand_dims(x, axis) for x in arrays], axis)


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
  need(not any(between) and all(size >= 0 for size in (*low, *high)), equation)
  inputs = [graph.full(value), int64((*low, *high)), fill]
  return graph.op('Pad', inputs, equation.outvars[0].aval.shape)


def _reduce(operator: str) -> Callable:
  def apply(graph, equation, inputs):
    inputs = [graph.full(inputs[0]), int64(equation.params['axes'])]
    return graph.op(operator, inputs, equation.outvars[0].aval.shape, keepdims=0)

  return apply


def _reduce_booleans(reduce: Callable) -> Callable:
  return _composed(lambda x, axes, **_: reduce(x.astype(int), axes).astype(bool))


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
  'and': _simple('And', only=bool),
  'argmax': _argmax,
  'broadcast_in_dim': _broadcast_in_dim,
  'clamp': _composed(lambda low, x, high: jnp.minimum(jnp.maximum(x, low), high)),
  'concatenate': _concatenate,
  'convert_element_type': _convert,
  'copy': lambda graph, equation, inputs: inputs,
  'eq': _simple('Equal'),
  'ge': _simple('GreaterOrEqual'),
  'gt': _simple('Greater'),
  'integer_pow': _integer_pow,
  'is_finite': _composed(lambda x: jnp.abs(x) < jnp.inf),
  'le': _simple('LessOrEqual'),
  'logistic': _simple('Sigmoid'),
  'lt': _simple('Less'),
  'max': _max,
  'ne': _simple('Equal', 'Not'),
  'not': _simple('Not', only=bool),
  'or': _simple('Or', only=bool),
  'pad': _pad,
  'reduce_and': _reduce_booleans(jnp.min),
  'reduce_max': _reduce('ReduceMax'),
  'reduce_min': _reduce('ReduceMin'),
  'reduce_or': _reduce_booleans(jnp.max),
  'reduce_sum': _reduce('ReduceSum'),
  'rem': _simple('Mod', fmod=1),  # of the sign of the number that is divided
  'reshape': _reshape,
  'rsqrt': _simple('Sqrt', 'Reciprocal'),
  'select_n': _select,
  'slice': _slice,
  'square': _composed(lambda x: x * x),
  'squeeze': _squeeze,
  'stack': _composed(_stack),
  'stop_gradient': lambda graph, equation, inputs: inputs,
  'tile': _tile,
  'top_k': _top_k,
  'transpose': lambda graph, equation, inputs: graph.transpose(
    inputs[0], equation.params['permutation']
  ),
  'unstack': _unstack,
}
