"""A jaxpr as a graph of ONNX's operators, which onnx_operators.py chooses.

Made for the detector: float32, int32 and bool; one symbolic dimension, the batch;
whatever depends on constants alone is computed here and stored.

A broadcast is not carried out until an operator asks for it: ONNX's arithmetic
broadcasts by itself, so a scale of each channel stays [1, 1, 1, C].
"""

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

BATCH = 'batch'


@dataclasses.dataclass(frozen=True)
class Tensor:
  """A value of the jaxpr in the graph.

  Attributes:
    name: in the graph; '' for a constant that no node has asked for yet.
    array: of a constant, else None.
    dtype: of the value.
    shape: of the value; the batch is a symbolic dimension.
    stored: the shape it has in the graph: 1 where a broadcast is not carried out.
    depth: of the graph it is in: 0, or in how many loops.
  """

  name: str
  array: np.ndarray | None
  dtype: Any
  shape: tuple[Any, ...]
  stored: tuple[Any, ...]
  depth: int = 0


# Those that hold jaxprs, that broadcast, and that would tell about this machine.
_NEVER_FOLDED = ('broadcast_in_dim', 'cond', 'jit', 'platform_index', 'while')
_BATCH_SIZE = Tensor('batch_size', None, np.dtype(np.int64), (1,), (1,))


@dataclasses.dataclass(frozen=True)
class Port:
  """An input or output of a graph; its batch dimension is symbolic."""

  name: str
  dtype: Any
  shape: tuple[Any, ...]


@dataclasses.dataclass(frozen=True)
class Node:
  """An operator of ONNX; an attribute may be a dtype or, of a loop, a WholeGraph."""

  operator: str
  inputs: tuple[str, ...]
  outputs: tuple[str, ...]
  attributes: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class WholeGraph:
  """A graph, or the body of a loop, which sees the values of the graph around it."""

  nodes: Sequence[Node]
  inputs: Sequence[Port]
  outputs: Sequence[Port]
  constants: Mapping[str, np.ndarray]


def constant(array: Any) -> Tensor:
  """A tensor that is known."""
  array = np.asarray(array)
  return Tensor('', array, array.dtype, array.shape, array.shape)


class Graph:
  """A graph under construction, or the body of a loop in one."""

  def __init__(self, operators: Mapping[str, Callable], parent: 'Graph | None' = None):
    """Args:
    operators: for each primitive a function (graph, equation, inputs) -> outputs. The
      name 'jit:f' stands for all that a jitted function f does.
    parent: of a body, which sees the values of the graph around it.
    """
    self._operators = operators
    self._nodes: list[Node] = []
    self._parent = parent
    self._root: Graph = parent._root if parent else self
    self.depth: int = parent.depth + 1 if parent else 0
    self._counter = 0
    self._names: dict[Any, str] = {}  # of constants, by what they are
    self._constants: dict[str, np.ndarray] = {}

  def body(self) -> 'Graph':
    """A graph for the body of a loop."""
    return Graph(self._operators, self)

  def new_name(self, hint: str = 'v') -> str:
    """A name that is not taken, in this graph and all bodies."""
    self._root._counter += 1
    return f'{hint}_{self._root._counter}'

  def tensor(self, name: str, dtype: Any, shape: Sequence[Any]) -> Tensor:
    """A value of this graph, stored in full."""
    return Tensor(name, None, np.dtype(dtype), tuple(shape), tuple(shape), self.depth)

  def inline(self, closed: Any, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Adds the nodes of a closed jaxpr; gives its outputs.

    Raises:
      NotImplementedError: a primitive that has no operator, or not in this form.
    """
    jaxpr = closed.jaxpr
    values = dict(zip(jaxpr.constvars, map(constant, closed.consts), strict=True))
    values |= dict(zip(jaxpr.invars, inputs, strict=True))
    read = lambda v: constant(v.val) if hasattr(v, 'val') else values[v]
    for equation in jaxpr.eqns:
      outputs = self._apply(equation, [read(v) for v in equation.invars])
      values |= zip(equation.outvars, outputs, strict=True)
    return [read(v) for v in jaxpr.outvars]

  def _apply(self, equation: Any, inputs: list[Tensor]) -> Sequence[Tensor]:
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
    self._nodes.append(
      Node(operator, tuple(names), tuple(r.name for r in results), attributes)
    )
    return results

  def name_of(self, tensor: Tensor) -> str:
    """Its name in the graph; equal constants are stored once and share one."""
    if tensor.array is None:
      return tensor.name
    array, root = tensor.array, self._root
    digest = hashlib.sha256(array.tobytes()).digest()
    key = (str(array.dtype), array.shape, digest)
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
    return self.node(
      'Expand', [tensor, self.shape_of(tensor.shape)], [(tensor.dtype, tensor.shape)]
    )[0]

  def shape_of(self, shape: Sequence[Any]) -> Tensor:
    """A shape as an int64 tensor; the batch's size comes from the graph's input."""
    if is_static(shape):
      return constant(np.array(shape, np.int64))
    parts = [
      constant(np.array([size], np.int64)) if is_static([size]) else _BATCH_SIZE
      for size in shape
    ]
    return self.node('Concat', parts, [(np.int64, (len(shape),))], axis=0)[0]

  def measure_batch(self, images: Tensor) -> None:
    """Adds the node that tells the batch's size, by an input whose first axis it is."""
    ends = {'start': 0, 'end': 1}
    self._nodes.append(Node('Shape', (images.name,), (_BATCH_SIZE.name,), ends))

  def reshape(self, tensor: Tensor, stored: Sequence[Any]) -> Tensor:
    """A tensor in another shape, in which the batch is one dimension or none."""
    if tensor.array is not None and is_static(stored):
      return constant(tensor.array.reshape(tuple(stored)))
    sizes = [size if is_static([size]) else -1 for size in stored]
    return self.node(
      'Reshape',
      [tensor, constant(np.array(sizes, np.int64))],
      [(tensor.dtype, stored)],
    )[0]

  def transpose(self, tensor: Tensor, order: Sequence[int]) -> Tensor:
    """A tensor with its axes in another order."""
    moved = lambda shape: tuple(shape[axis] for axis in order)
    if tensor.array is not None:
      array = np.ascontiguousarray(tensor.array.transpose(order))
      return dataclasses.replace(
        constant(array), shape=moved(tensor.shape), stored=array.shape
      )
    (result,) = self.node(
      'Transpose', [tensor], [(tensor.dtype, moved(tensor.stored))], perm=list(order)
    )
    return dataclasses.replace(result, shape=moved(tensor.shape))

  def cast(self, tensor: Tensor, dtype: Any) -> Tensor:
    """A tensor in another dtype."""
    dtype = np.dtype(dtype)
    if tensor.dtype == dtype:
      return tensor
    if tensor.array is not None:
      array = tensor.array.astype(dtype)
      return dataclasses.replace(tensor, array=array, dtype=dtype)
    (result,) = self.node('Cast', [tensor], [(dtype, tensor.stored)], to=dtype)
    return dataclasses.replace(result, shape=tensor.shape)

  def output(self, tensor: Tensor, name: str) -> Port:
    """Makes a tensor, in full, an output of the graph."""
    source = self.name_of(self.full(tensor))
    self._nodes.append(Node('Identity', (source,), (name,), {}))
    return Port(name, tensor.dtype, tensor.shape)

  def finish(self, inputs: Sequence[Port], outputs: Sequence[Port]) -> WholeGraph:
    """The graph of what was added."""
    return WholeGraph(self._nodes, inputs, outputs, self._constants)


def _known(equation: Any, inputs: Sequence[Tensor]) -> list[Tensor] | None:
  """What an equation gives whose inputs are constants; None if one is not."""
  shapes = [v.aval.shape for v in equation.outvars] + [x.shape for x in inputs]
  arrays = [x.array for x in inputs if x.array is not None]
  if len(arrays) < len(inputs) or not all(is_static(shape) for shape in shapes):
    return None
  full = [np.broadcast_to(a, x.shape) for a, x in zip(arrays, inputs, strict=True)]
  found = equation.primitive.bind(*full, **equation.params)
  found = found if equation.primitive.multiple_results else [found]
  return [constant(x) for x in found]


def is_static(shape: Sequence[Any]) -> bool:
  """Whether all dimensions are numbers."""
  return all(isinstance(size, int | np.integer) for size in shape)


def convert(
  function: Callable,
  variables: Any,
  batch: Mapping[str, jax.ShapeDtypeStruct],
  operators: Mapping[str, Callable],
) -> WholeGraph:
  """The graph of function(variables, batch) -> dict of arrays.

  Args:
    function: pure.
    variables: a tree of arrays, constants of the graph.
    batch: shapes of the inputs by their names; the first dimension of each is the same
      symbolic size.
    operators: as `Graph` takes them.

  Raises:
    NotImplementedError: it does what has no ONNX form here.
  """
  closed, shapes = jax.make_jaxpr(function, return_shape=True)(variables, batch)
  graph = Graph(operators)
  names = sorted(batch)  # as jax orders a dict
  inputs = [Port(n, np.dtype(batch[n].dtype), batch[n].shape) for n in names]
  values = [graph.tensor(port.name, port.dtype, port.shape) for port in inputs]
  graph.measure_batch(values[0])
  known = [constant(leaf) for leaf in jax.tree.leaves(variables)]
  found = zip(sorted(shapes), graph.inline(closed, [*known, *values]), strict=True)
  return graph.finish(inputs, [graph.output(tensor, name) for name, tensor in found])
