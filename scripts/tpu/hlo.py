"""Reads the text of a compiled program: its instructions, and the compiler's estimates.

Only instructions of the schedule count: those of the entry computation, and those of
the loops that it calls, once for each trip. A fusion counts as one instruction.
"""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

# The class of cost is the first of these that an instruction or a fusion contains.
_CLASSES = (
  ('collective', r'all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute'),
  ('convolution', r'convolution|dot'),
  ('sort', r'sort|topk'),
  ('scatter', r'scatter|select-and-scatter'),
  ('gather', r'gather|dynamic-slice|dynamic-update-slice'),
  ('custom call', r'custom-call'),
  ('reduction', r'reduce|reduce-window'),
)
_LAYOUT = (
  r'copy|transpose|reshape|bitcast|pad|slice|concatenate|convert|broadcast|tuple'
)
_FREE = ('parameter', 'constant', 'tuple', 'get-tuple-element', 'bitcast')
_HEAD = re.compile(r'^(?:ENTRY )?%(?P<name>[\w.\-]+) \(.*\{$')
_LINE = re.compile(r'^  (?:ROOT )?%(?P<name>[\w.\-]+) = (?P<rest>.*)$')
_ARRAY = re.compile(
  r'\b(?P<type>pred|bf16|[fsuc]\d+)\[(?P<shape>[\d,]*)\]'
  r'(?:\{(?P<order>[\d,]*)(?::T\((?P<tile>[\d,]+)\))?)?'
)


class Instruction(NamedTuple):
  """One instruction of a computation.

  Attributes:
    name: in the program.
    kind: the operation, such as 'fusion'.
    output: text of the output's shape.
    calls: names of the computations that it calls.
    cycles: the compiler's estimate; None without one.
    trips: number of trips of a loop, if the compiler notes it.
    source: origin of the instruction, as jax names it.
    arguments: text of the arguments: names, or the value of a constant.
    ascends: whether it compares its first argument to be less than its second.
  """

  name: str
  kind: str
  output: str
  calls: tuple[str, ...]
  cycles: int | None
  trips: int | None
  source: str
  arguments: str
  ascends: bool


class Item(NamedTuple):
  """One instruction of the schedule.

  Attributes:
    instruction: itself.
    group: class of its cost.
    times: number of executions in one run of the program; a loop with an unknown number
      of trips counts as one trip.
  """

  instruction: Instruction
  group: str
  times: int

  @property
  def cycles(self) -> int:
    """Of all executions together; 0 without an estimate."""
    return max(self.instruction.cycles or 0, 0) * self.times


def schedule(text: str) -> tuple[list[Item], int]:
  """The instructions that a program runs, in order, without parameters and the like.

  Args:
    text: `compiled.as_text()`.

  Returns:
    The instructions, and the number of loops whose trips are unknown.

  Raises:
    ValueError: no entry computation.
  """
  computations, entry = _computations(text)
  if entry is None:
    raise ValueError('the text has no ENTRY computation: give compiled.as_text()')

  endless = []

  def walk(name: str, times: int) -> Iterator[Item]:
    for instruction in computations[name]:
      if instruction.kind == 'while':
        trips = _trips(instruction, computations)
        if trips is None:
          endless.append(instruction.name)
        for called in instruction.calls:
          yield from walk(called, times * (trips or 1))
      elif instruction.kind in ('call', 'conditional', 'async-start'):
        for called in instruction.calls:
          yield from walk(called, times)
      elif instruction.kind not in _FREE:
        yield Item(instruction, _group(instruction, computations), times)

  return list(walk(entry, 1)), len(endless)


def _trips(loop: Instruction, computations: dict[str, list[Instruction]]) -> int | None:
  """Trips of a loop: noted by the compiler, or the limit that its condition compares.

  The second works because jax's loops of a fixed length count from 0 by one.
  """
  if loop.trips is not None:
    return loop.trips
  for called in loop.calls:
    values = {x.name: x.arguments for x in computations[called] if x.kind == 'constant'}
    last = computations[called][-1]
    if last.kind == 'compare' and last.ascends:
      limit = values.get(last.arguments.rpartition('%')[2], '')
      return int(limit) if limit.isdigit() else None
  return None


def arrays(output: str) -> Iterator[tuple[str, int, int]]:
  """(text, bytes of its elements, bytes with the padding of its tiles) of each array.

  Args:
    output: text of a shape, or of a tuple of shapes.
  """
  for match in _ARRAY.finditer(output):
    sizes = [int(n) for n in match['shape'].split(',') if n]
    padded = list(sizes)
    if match['tile'] and match['order']:
      tile = [int(n) for n in match['tile'].split(',')]
      minor_first = [int(n) for n in match['order'].split(',')]
      for axis, side in zip(minor_first, reversed(tile), strict=False):
        padded[axis] = -(-padded[axis] // side) * side
    width = _width(match['type'])
    text = f'{match["type"]}[{match["shape"]}]'
    yield (
      text,
      math.ceil(math.prod(sizes) * width),
      math.ceil(math.prod(padded) * width),
    )


def output_bytes(item: Item) -> int:
  """Bytes of an item's output in one execution, without padding."""
  return sum(size for _, size, _ in arrays(item.instruction.output))


def _width(kind: str) -> float:
  return 1.0 if kind == 'pred' else int(re.sub(r'\D', '', kind)) / 8


def _computations(text: str) -> tuple[dict[str, list[Instruction]], str | None]:
  """Instructions of each computation by name, and the name of the entry."""
  computations: dict[str, list[Instruction]] = {}
  entry, current = None, []
  for line in text.splitlines():
    if head := _HEAD.match(line):
      current = computations.setdefault(head['name'], [])
      entry = head['name'] if line.startswith('ENTRY ') else entry
    elif found := _LINE.match(line):
      current.append(_instruction(found['name'], found['rest']))
  return computations, entry


def _instruction(name: str, rest: str) -> Instruction:
  end = _closing(rest) if rest.startswith('(') else rest.index(' ')
  output, rest = rest[:end], rest[end:].lstrip()
  kind = rest[: rest.index('(')]
  end = _closing(rest[len(kind) :]) + len(kind)
  arguments, rest = rest[len(kind) + 1 : end - 1], rest[end:]
  called = re.findall(
    r'(?:calls|body|condition|called_computations)=\{?%([\w.\-]+)', rest
  )
  called += re.findall(r'(?:branch|called)_computations=\{([^}]*)\}', rest)
  calls = tuple(part.strip(' %') for text in called for part in text.split(','))
  first = lambda pattern: next(iter(re.findall(pattern, rest)), None)
  cycles = first(r'"estimated_cycles":"(-?\d+)"')
  trips = first(r'"known_trip_count":\{"n":"(\d+)"')
  return Instruction(
    name,
    kind,
    output,
    tuple(dict.fromkeys(calls)),
    None if cycles is None else int(cycles),
    None if trips is None else int(trips),
    first(r'op_name="((?:[^"\\]|\\.)*)"') or '',
    arguments,
    'direction=LT' in rest,
  )


def _closing(text: str) -> int:
  """The index after the parenthesis that closes the first one."""
  depth = 0
  for place, character in enumerate(text):
    depth += (character == '(') - (character == ')')
    if not depth:
      return place + 1
  return len(text)


def _group(instruction: Instruction, computations) -> str:
  """The class of an instruction's cost; of a fusion, that of its most costly part."""
  kinds, waiting = {instruction.kind}, list(instruction.calls)
  while waiting:
    for inner in computations.get(waiting.pop(), ()):
      kinds.add(inner.kind)
      waiting += inner.calls
  kinds = {re.sub(r'-(start|done|update)$', '', kind) for kind in kinds}
  for group, pattern in _CLASSES:
    if any(re.fullmatch(pattern, kind) for kind in kinds):
      return group
  moved = [re.fullmatch(_LAYOUT, kind) for kind in kinds - {'fusion', *_FREE}]
  return 'copy and layout' if all(moved) else 'element-wise'
