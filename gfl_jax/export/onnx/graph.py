"""A jaxpr as a graph of ONNX's operators, which operators.py chooses.

Made for the detector: float32, int32 and bool; one symbolic dimension, the batch. What
depends only on constants is computed here and stored.

A broadcast is not carried out until an operator asks for it: ONNX's arithmetic
broadcasts by itself, so a scale of each channel stays [1, 1, 1, C].
"""

import dataclasses
import hashlib
import importlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from gfl_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Tensor:
  """A value of the jaxpr in the graph.

  Attributes:
    name: in the graph; '' for a constant that no node has used yet.
    array: of a constant, else None.
    dtype: of the value.
    shape: of the value; the batch is a symbolic dimension.
    stored: its shape in the graph: 1 where a broadcast is not carried out.
    depth: how many loops its graph is nested in.
  """

  name: str
  array: np.ndarray | None
  dtype: Any
  shape: tuple[Any, ...]
  stored: tuple[Any, ...]
  depth: int = 0


Outputs = Tensor | Sequence[Tensor]
# Primitives that hold jaxprs, that broadcast, and that depend on this machine.
_NEVER_FOLDED = ('broadcast_in_dim', 'cond', 'jit', 'platform_index', 'while')
_BATCH_SIZE = Tensor('batch_size', None, np.dtype(np.int64), (1,), (1,))


def from_extra(module: str) -> Any:
  """A module of the extra `onnx`; an error with what to do if it is not installed."""
  try:
    return importlib.import_module(module)
  except ImportError as error:
    raise UserError(
      f"ONNX needs an extra ({error}): pip install -e '.[onnx]'"
    ) from error


def constant(array: Any) -> Tensor:
  """The tensor of a constant."""
  array = np.asarray(array)
  return Tensor('', array, array.dtype, array.shape, array.shape)


class Graph:
  """A graph under construction, or the body of a loop in one.

  A body sees the values of the graph around it, its parent.
  """

  def __init__(self, operators: Mapping[str, Callable], parent: 'Graph | None' = None):
    """Args:
    operators: for each primitive a function (graph, equation, inputs) -> its output or
      outputs. The name 'jit:f' stands for all that a jitted function f does.
    parent: of a body.
    """
    self._operators = operators
    self._nodes: list[Any] = []
    self._parent = parent
    self._root: Graph = parent._root if parent else self
    self.depth: int = parent.depth + 1 if parent else 0
    self._counter = 0
    self._names: dict[Any, str] = {}  # of constants, by dtype, shape and content
    self._constants: dict[str, np.ndarray] = {}

  def body(self) -> 'Graph':
    """A graph for the body of a loop."""
    return Graph(self._operators, self)

  def new_name(self, hint: str) -> str:
    """A name that is not taken, in this graph and all bodies."""
    self._root._counter += 1
    return f'{hint}_{self._root._counter}'

  def tensor(self, name: str, dtype: Any, shape: Sequence[Any]) -> Tensor:
    """A value of this graph, stored in full."""
    return Tensor(name, None, np.dtype(dtype), tuple(shape), tuple(shape), self.depth)

  def inline(self, closed: Any, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Adds the nodes of a closed jaxpr; returns its outputs.

    Raises:
      NotImplementedError: a primitive that has no operator, or not in this form.
    """
    jaxpr = closed.jaxpr
    values = dict(zip(jaxpr.constvars, map(constant, closed.consts), strict=True))
    values |= dict(zip(jaxpr.invars, inputs, strict=True))
    read = lambda v: constant(v.val) if hasattr(v, 'val') else values[v]
    for equation in jaxpr.eqns:
      found = self._apply(equation, [read(v) for v in equation.invars])
      outputs = [found] if isinstance(found, Tensor) else found
      values |= zip(equation.outvars, outputs, strict=True)
    return [read(v) for v in jaxpr.outvars]

  def call(self, function: Callable, *inputs: Tensor) -> list[Tensor]:
    """Adds the nodes of a pure function of arrays; returns its outputs."""
    shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in inputs]
    return self.inline(jax.make_jaxpr(function)(*shapes), inputs)

  def _apply(self, equation: Any, inputs: list[Tensor]) -> Outputs:
    name = equation.primitive.name
    whole = f'jit:{equation.params.get("name")}'
    if name == 'jit' and whole in self._operators:
      return self._operators[whole](self, equation, inputs)
    if name not in _NEVER_FOLDED:
      known = _known(equation, inputs)
      if known is not None:
        return known
    if self._parent and all(x.depth < self.depth for x in inputs):
      return self._parent._apply(equation, inputs)  # the same at every step of the loop
    if name not in self._operators:
      raise NotImplementedError(f'the primitive {name!r}')
    return self._operators[name](self, equation, inputs)

  def node(
    self,
    operator: str,
    inputs: Sequence[Tensor | None],
    outputs: Sequence[tuple[Any, Sequence[Any]]],
    **attributes: Any,
  ) -> list[Tensor]:
    """Adds a node.

    Args:
      operator: ONNX's name of it.
      inputs: None is an optional input that is left out.
      outputs: (dtype, stored shape) of each.
      **attributes: of the node.
    """
    results = [
      self.tensor(self.new_name(operator.lower()), dtype, shape)
      for dtype, shape in outputs
    ]
    names = ['' if x is None else self.name_of(x) for x in inputs]
    self.add(operator, names, [x.name for x in results], **attributes)
    return results

  def op(
    self,
    operator: str,
    inputs: Sequence[Tensor],
    shape: Sequence[Any],
    dtype: Any = None,
    **attributes: Any,
  ) -> Tensor:
    """Adds a node with one output, of the first input's dtype if none is given."""
    outputs = [(inputs[0].dtype if dtype is None else dtype, shape)]
    return self.node(operator, inputs, outputs, **attributes)[0]

  def add(self, *arguments, **attributes) -> None:
    """Adds a node, as onnx.helper.make_node takes it."""
    self._nodes.append(from_extra('onnx.helper').make_node(*arguments, **attributes))

  def name_of(self, tensor: Tensor) -> str:
    """Its name in the graph; equal constants are stored once and share one."""
    if tensor.array is None:
      return tensor.name
    array, root = tensor.array, self._root
    key = (str(array.dtype), array.shape, hashlib.sha256(array.tobytes()).digest())
    if key not in root._names:
      root._names[key] = self.new_name('constant')
      root._constants[root._names[key]] = array
    return root._names[key]

  def full(self, tensor: Tensor) -> Tensor:
    """The tensor with its broadcasts carried out."""
    if tensor.stored == tensor.shape:
      return tensor
    if self._parent and tensor.depth < self.depth:
      return self._parent.full(tensor)
    if tensor.array is not None and is_static(tensor.shape):
      return constant(np.ascontiguousarray(np.broadcast_to(tensor.array, tensor.shape)))
    sizes = [int64([x]) if is_static([x]) else _BATCH_SIZE for x in tensor.shape]
    static = is_static(tensor.shape)
    shape = (
      int64(tensor.shape) if static else self.op('Concat', sizes, [len(sizes)], axis=0)
    )
    return self.op('Expand', [tensor, shape], tensor.shape)

  def reshape(self, tensor: Tensor, stored: Sequence[Any]) -> Tensor:
    """A tensor in another shape, in which the batch is one dimension or none."""
    if tensor.array is not None and is_static(stored):
      return constant(tensor.array.reshape(tuple(stored)))
    sizes = [size if is_static([size]) else -1 for size in stored]
    return self.op('Reshape', [tensor, int64(sizes)], stored)

  def transpose(self, tensor: Tensor, order: Sequence[int]) -> Tensor:
    """A tensor with its axes in another order."""
    moved = lambda shape: tuple(shape[axis] for axis in order)
    if tensor.array is not None:
      array = np.ascontiguousarray(tensor.array.transpose(order))
      return dataclasses.replace(
        constant(array), shape=moved(tensor.shape), stored=array.shape
      )
    result = self.op('Transpose', [tensor], moved(tensor.stored), perm=list(order))
    return dataclasses.replace(result, shape=moved(tensor.shape))

  def cast(self, tensor: Tensor, dtype: Any) -> Tensor:
    """A tensor in another dtype."""
    dtype = np.dtype(dtype)
    if tensor.dtype == dtype:
      return tensor
    if tensor.array is not None:
      array = tensor.array.astype(dtype)
      return dataclasses.replace(tensor, array=array, dtype=dtype)
    to = from_extra('onnx.helper').np_dtype_to_tensor_dtype(dtype)
    result = self.op('Cast', [tensor], tensor.stored, dtype, to=to)
    return dataclasses.replace(result, shape=tensor.shape)

  def output(self, tensor: Tensor, name: str) -> Tensor:
    """Makes a tensor, in full, an output of the graph under this name."""
    self.add('Identity', [self.name_of(self.full(tensor))], [name])
    return self.tensor(name, tensor.dtype, tensor.shape)

  def finish(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> Any:
    """The onnx.GraphProto of all nodes added so far; its batch size is symbolic."""
    helper, numpy_helper = from_extra('onnx.helper'), from_extra('onnx.numpy_helper')

    def port(x: Tensor):
      sizes = [size if is_static([size]) else 'batch' for size in x.shape]
      dtype = helper.np_dtype_to_tensor_dtype(x.dtype)
      return helper.make_tensor_value_info(x.name, dtype, sizes)

    stored = [
      numpy_helper.from_array(np.asarray(array, order='C'), name)
      for name, array in self._constants.items()
    ]
    ports = [port(x) for x in inputs], [port(x) for x in outputs]
    return helper.make_graph(
      self._nodes, 'body' if self._parent else 'detector', *ports, stored
    )


def _known(equation: Any, inputs: Sequence[Tensor]) -> list[Tensor] | None:
  """The outputs of an equation whose inputs are all constants, else None."""
  shapes = [v.aval.shape for v in equation.outvars] + [x.shape for x in inputs]
  arrays = [x.array for x in inputs if x.array is not None]
  if len(arrays) < len(inputs) or not all(is_static(shape) for shape in shapes):
    return None
  full = [np.broadcast_to(a, x.shape) for a, x in zip(arrays, inputs, strict=True)]
  found = equation.primitive.bind(*full, **equation.params)
  found = found if equation.primitive.multiple_results else [found]
  return [constant(x) for x in found]


def int64(values: Iterable[Any]) -> Tensor:
  """Sizes, axes and the like, as operators take them."""
  return constant(np.array(list(values), np.int64))


def is_static(shape: Sequence[Any]) -> bool:
  """Whether all dimensions are numbers."""
  return all(isinstance(size, int | np.integer) for size in shape)


def convert(
  function: Callable,
  variables: Any,
  batch: Mapping[str, jax.ShapeDtypeStruct],
  operators: Mapping[str, Callable],
) -> Any:
  """The onnx.GraphProto of function(variables, batch) -> dict of arrays.

  Args:
    function: pure.
    variables: a tree of arrays, constants of the graph.
    batch: shapes of the inputs by their names; the first dimension of each is the same
      symbolic size.
    operators: as `Graph` takes them.

  Raises:
    NotImplementedError: a primitive of it has no ONNX form here.
    ValueError: the extra `onnx` is not installed.
  """
  closed, shapes = jax.make_jaxpr(function, return_shape=True)(variables, batch)
  graph = Graph(operators)
  names = sorted(batch)  # as jax orders a dict
  inputs = [graph.tensor(n, batch[n].dtype, batch[n].shape) for n in names]
  graph.add('Shape', [inputs[0].name], [_BATCH_SIZE.name], start=0, end=1)
  known = [constant(leaf) for leaf in jax.tree.leaves(variables)]
  found = zip(sorted(shapes), graph.inline(closed, [*known, *inputs]), strict=True)
  return graph.finish(inputs, [graph.output(tensor, name) for name, tensor in found])
