"""The primitives that a detector is made of, each as operators of ONNX.

`OPERATORS[name](graph, equation, inputs)` adds the nodes for an equation of that
primitive and returns its output or outputs. A use that no detector has raises
NotImplementedError; nothing is approximated.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import jaxpr_as_fun

from gfl_jax.export.onnx.array_operators import ARRAY_OPERATORS, need
from gfl_jax.export.onnx.graph import Graph, Outputs, Tensor, constant, int64


def _dot_general(graph, equation, inputs):
  """A matrix or vector at the right of any array: all that a detector multiplies."""
  (left_axes, right_axes), batches = equation.params['dimension_numbers']
  left, right = (graph.full(x) for x in inputs)
  need(batches == ((), ()) and len(right.shape) <= 2, equation)
  need(
    tuple(left_axes) == (len(left.shape) - 1,) and tuple(right_axes) == (0,), equation
  )
  # As one product of matrices: runtimes do many small ones one by one.
  length, out = right.shape[0], equation.outvars[0].aval
  left = graph.reshape(left, ('rows', length))
  right = graph.reshape(right, (length, *(right.shape[1:] or (1,))))
  shape = ('rows', right.shape[1])
  return graph.reshape(graph.op('MatMul', [left, right], shape), out.shape)


def _convolution(graph, equation, inputs):
  params, out = equation.params, equation.outvars[0].aval
  numbers = params['dimension_numbers']
  need(
    set(params['lhs_dilation']) == {1} and params['batch_group_count'] == 1, equation
  )
  lows, highs = zip(*params['padding'], strict=True)
  need(min(*lows, *highs) >= 0, equation)
  image = graph.transpose(graph.full(inputs[0]), numbers.lhs_spec)
  kernel = graph.transpose(graph.full(inputs[1]), numbers.rhs_spec)
  result = graph.op(
    'Conv',
    [image, kernel],
    [out.shape[axis] for axis in numbers.out_spec],
    strides=list(params['window_strides']),
    pads=[*lows, *highs],
    dilations=list(params['rhs_dilation']),
    group=params['feature_group_count'],
  )
  return graph.transpose(result, np.argsort(numbers.out_spec).tolist())


_CHANNELS_FIRST, _CHANNELS_LAST = (0, 3, 1, 2), (0, 2, 3, 1)


def _max_pool(graph, equation, inputs):
  """Of [batch, height, width, channels]."""
  params, out = equation.params, equation.outvars[0].aval
  window, strides = params['window_dimensions'], params['window_strides']
  lows, highs = zip(*params['padding'], strict=True)
  dilated = {*params['base_dilation'], *params['window_dilation']} != {1}
  need(len(window) == 4 and window[0] == window[3] == 1 and not dilated, equation)
  need(strides[0] == strides[3] == 1, equation)
  image = graph.transpose(graph.full(inputs[0]), _CHANNELS_FIRST)
  result = graph.op(
    'MaxPool',
    [image],
    [out.shape[axis] for axis in _CHANNELS_FIRST],
    kernel_shape=list(window[1:3]),
    strides=list(strides[1:3]),
    pads=[*lows[1:3], *highs[1:3]],
  )
  return graph.transpose(result, _CHANNELS_LAST)


def _gather(graph, equation, inputs):
  """array[i, index[i, j, 0], index[i, j, 1]]: leading axes that both have, then axes
  that are looked up, then axes taken whole."""
  array, indices = (graph.full(x) for x in inputs)
  numbers, sizes = equation.params['dimension_numbers'], equation.params['slice_sizes']
  out, common = equation.outvars[0].aval, len(numbers.operand_batching_dims)
  leading, axes = range(common), range(common, common + len(numbers.start_index_map))
  offsets = len(array.shape) - common - len(numbers.collapsed_slice_dims)
  expected = jax.lax.GatherDimensionNumbers(
    offset_dims=tuple(range(len(out.shape) - offsets, len(out.shape))),
    collapsed_slice_dims=numbers.collapsed_slice_dims,
    start_index_map=tuple(axes),
    operand_batching_dims=tuple(leading),
    start_indices_batching_dims=tuple(leading),
  )
  looked_up = len([axis for axis in axes if sizes[axis] == 1])
  rest = array.shape[common + looked_up :]
  whole = tuple(sizes) == (*[1] * (common + looked_up), *rest)
  need(whole and numbers == expected, equation)
  shape = (*indices.shape[:-1], looked_up)
  if shape != indices.shape:  # of an axis taken whole: clipped to its beginning
    need(equation.params['mode'] == jax.lax.GatherScatterMode.CLIP, equation)
    cut = [int64(x) for x in ([0], [looked_up], [len(shape) - 1])]
    indices = graph.op('Slice', [indices, *cut], shape)
  # ONNX fails on an index outside the array, which jax would clip or fill in.
  indices = graph.cast(indices, np.int64)
  shape = (*shape[:-1], *rest)
  rows = graph.op('GatherND', [array, indices], shape, batch_dims=common)
  return rows if rows.shape == out.shape else graph.reshape(rows, out.shape)


def _scatter(graph, equation, inputs):
  """One element of each row is replaced: array[i, index[i]] = update[i]."""
  array, indices, updates = (graph.full(x) for x in inputs)
  numbers, out = equation.params['dimension_numbers'], equation.outvars[0].aval
  if updates.shape == array.shape and indices.shape[-1] == 0:
    return updates  # all of it is replaced
  axis = len(array.shape) - 1
  expected = jax.lax.ScatterDimensionNumbers(
    update_window_dims=(),
    inserted_window_dims=(axis,),
    scatter_dims_to_operand_dims=(axis,),
    operand_batching_dims=tuple(range(axis)),
    scatter_indices_batching_dims=tuple(range(axis)),
  )
  need(indices.shape == (*updates.shape, 1) and numbers == expected, equation)
  updates = graph.reshape(updates, indices.shape)
  inputs = [array, graph.cast(indices, np.int64), updates]
  return graph.op('ScatterElements', inputs, out.shape, axis=axis)


def _call(name: str) -> Callable:
  """Inlines a called function; name: of the parameter that holds its jaxpr."""
  return lambda graph, equation, inputs: graph.inline(equation.params[name], inputs)


def _platform_index(graph, equation, inputs):
  """The default: ONNX is none of the platforms with a branch of their own."""
  return constant(np.int32(equation.params['platforms'].index(None)))


def _cond(graph, equation, inputs):
  """The branch, which must be known while converting."""
  which, *arguments = inputs
  need(which.array is not None, equation)
  return graph.inline(equation.params['branches'][int(which.array)], arguments)


def _while(graph, equation, inputs):
  """A loop, or one loop for each image. Then it runs while any of them does, and an
  image whose own loop has ended keeps its state."""
  params = equation.params
  asks, steps = (jaxpr_as_fun(params[name]) for name in ('cond_jaxpr', 'body_jaxpr'))
  first, second = (
    params['cond_nconsts'],
    params['cond_nconsts'] + params['body_nconsts'],
  )
  constants, state = inputs[:second], [graph.full(x) for x in inputs[second:]]

  def is_going(*values):
    (each,) = asks(*values[:first], *values[second:])
    return each.any() if each.ndim else each

  def step(*values):
    (each,) = asks(*values[:first], *values[second:])
    results = steps(*values[first:])
    if not each.ndim:
      return results
    rows = lambda new: jnp.expand_dims(each, range(each.ndim, new.ndim))
    pairs = zip(results, values[second:], strict=True)
    return [jnp.where(rows(new), new, old) for new, old in pairs]

  body = graph.body()
  inside = [body.tensor(graph.new_name('state'), x.dtype, x.shape) for x in state]
  results = body.call(step, *constants, *inside)
  (going,) = body.call(is_going, *constants, *results)
  going = body.output(going, graph.new_name('going'))
  outputs = [body.output(x, graph.new_name('result')) for x in results]
  number = body.tensor(graph.new_name('number'), np.int64, ())
  before = body.tensor(graph.new_name('before'), bool, ())
  return graph.node(
    'Loop',
    [None, *graph.call(is_going, *constants, *state), *state],
    [(v.aval.dtype, v.aval.shape) for v in equation.outvars],
    body=body.finish([number, before, *inside], [going, *outputs]),
  )


OPERATORS: dict[str, Callable[[Graph, Any, list[Tensor]], Outputs]] = {
  **ARRAY_OPERATORS,
  'conv_general_dilated': _convolution,
  'cond': _cond,
  'custom_jvp_call': _call('call_jaxpr'),
  'dot_general': _dot_general,
  'gather': _gather,
  'jit': _call('jaxpr'),
  'platform_index': _platform_index,
  'reduce_window_max': _max_pool,
  'scatter': _scatter,
  'while': _while,
}
