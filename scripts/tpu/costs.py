"""What a compiled program costs on a chip: memory, time, and where the time goes."""

import collections
import math
from typing import Any

import jax
from jax.extend import core

from scripts.tpu import hlo
from scripts.tpu.chips import Chip

LARGEST = 12  # items that are named


def conv_macs(jaxpr: Any) -> int:
  """Multiplications of the convolutions of a jaxpr, those of loops for each trip.

  Of several forms, such as one for each platform, the cheapest counts.

  Zeros that dilation puts between elements are not counted: the gradient of a
  convolution with a stride costs what the convolution does. Padding is counted.

  Args:
    jaxpr: such as `jax.make_jaxpr` returns, with whole numbers as its shapes.
  """
  jaxpr = getattr(jaxpr, 'jaxpr', jaxpr)
  total = 0
  for equation in jaxpr.eqns:
    if equation.primitive.name == 'conv_general_dilated':
      total += _macs(equation)
    if equation.primitive.name == 'cond':
      total += min(conv_macs(branch) for branch in equation.params['branches'])
      continue
    trips = equation.params.get('length', 1) if equation.primitive.name == 'scan' else 1
    for value in jax.tree.leaves(
      list(equation.params.values()), is_leaf=lambda x: hasattr(x, 'eqns')
    ):
      if isinstance(value, core.Jaxpr | core.ClosedJaxpr):
        total += trips * conv_macs(value)
  return total


def _macs(equation) -> int:
  parameters = equation.params
  kernel, out = equation.invars[1].aval.shape, equation.outvars[0].aval.shape
  # The kernel's first axis in its own order is the outputs, and it holds the groups.
  outputs = kernel[parameters['dimension_numbers'].rhs_spec[0]]
  products = math.prod(out) * math.prod(kernel) // outputs
  # The groups of a gradient may be those of the batch; they are in the shapes already.
  return products // math.prod(parameters['lhs_dilation'])


def memory(compiled: Any, chip: Chip) -> dict[str, Any]:
  """Bytes on one chip, by what they are for, and whether they fit.

  `peak` is what has to be there at once: arguments, code, temporaries, and those
  outputs that do not take the place of an argument.
  """
  found = compiled.memory_analysis()
  sizes = {
    'arguments': found.argument_size_in_bytes,
    'outputs': found.output_size_in_bytes,
    'aliased': found.alias_size_in_bytes,
    'temporaries': found.temp_size_in_bytes,
    'code': found.generated_code_size_in_bytes,
  }
  peak = sum(sizes.values()) - 2 * sizes['aliased']
  return {**sizes, 'peak': peak, 'hbm': chip.hbm_bytes, 'fits': peak <= chip.hbm_bytes}


def time(
  compiled: Any, items: list[hlo.Item], chip: Chip, model_flops: float
) -> dict[str, float]:
  """Predictions for one run of a program on a chip, in ms; nothing here is measured.

  Args:
    compiled: the program.
    items: its schedule.
    chip: what it runs on.
    model_flops: of the convolutions that the program is for, once each, on one chip.

  Returns:
    `compute` and `memory`, what FLOPs and bytes take at the chip's peak, and
    `roofline`, the greater; `optimal`, the compiler's cost analysis, which is the least
    and may be absurd (negative); `scheduled`, the compiler's estimates of all
    instructions that have one, one after the other; `all_reduce`, each byte over
    the links twice; `step`, the last two together, and its `mfu`.
  """
  analysis = compiled.cost_analysis()
  ms = {
    'compute': 1e3 * max(analysis['flops'], model_flops) / chip.flops,
    'memory': 1e3 * analysis['bytes accessed'] / chip.bandwidth,
    'optimal': 1e3 * analysis.get('optimal_seconds', math.nan),
    'scheduled': 1e3 * sum(item.cycles for item in items) / chip.clock,
    'all_reduce': 1e3 * 2 * collectives(items)['bytes'] / chip.links,
  }
  ms['roofline'] = max(ms['compute'], ms['memory'])
  ms['step'] = max(ms['scheduled'], ms['roofline']) + ms['all_reduce']
  ms['mfu'] = 1e3 * model_flops / chip.flops / ms['step']
  return ms


def collectives(items: list[hlo.Item]) -> dict[str, int]:
  """How many there are, and bytes of their results on one chip."""
  found = [
    item
    for item in items
    if item.group == 'collective' and not item.instruction.kind.endswith('-done')
  ]
  return {
    'count': sum(item.times for item in found),
    'bytes': sum(hlo.output_bytes(item) * item.times for item in found),
  }


def groups(items: list[hlo.Item], chip: Chip) -> dict[str, dict[str, float]]:
  """By class of cost: ms, instructions, and those the compiler has no estimate for."""
  found: dict[str, dict[str, float]] = collections.defaultdict(
    lambda: {'ms': 0.0, 'count': 0, 'without_estimate': 0}
  )
  for item in items:
    group = found[item.group]
    group['ms'] += 1e3 * item.cycles / chip.clock
    group['count'] += 1
    group['without_estimate'] += not item.cycles
  return dict(sorted(found.items(), key=lambda pair: -pair[1]['ms']))


def largest(items: list[hlo.Item], chip: Chip) -> list[dict[str, Any]]:
  """The instructions beside convolutions that take longest, by the compiler's word."""
  others = [item for item in items if item.group != 'convolution' and item.cycles]
  others.sort(key=lambda item: -item.cycles)
  return [_described(item, chip) for item in others[:LARGEST]]


def without_estimate(items: list[hlo.Item]) -> list[dict[str, Any]]:
  """Gathers, scatters and sorts without an estimate, by the size of their results."""
  found = [
    i for i in items if i.group in ('gather', 'scatter', 'sort') and not i.cycles
  ]
  found.sort(key=lambda item: -hlo.output_bytes(item) * item.times)
  return [_described(item, None) for item in found[:LARGEST]]


def padding(items: list[hlo.Item]) -> dict[str, Any]:
  """Share of what the schedule writes that is padding of tiles, and where most is."""
  written = padded = 0
  waste: dict[str, tuple[int, str]] = {}
  for item in items:
    for text, size, with_padding in hlo.arrays(item.instruction.output):
      written += with_padding * item.times
      padded += (with_padding - size) * item.times
      most = waste.get(text, (0, ''))
      waste[text] = max(most, (with_padding - size, item.instruction.source))
  worst = sorted(waste.items(), key=lambda pair: -pair[1][0])[:5]
  return {
    'share': padded / max(written, 1),
    'worst': [
      {'array': text, 'mb': round(size / 1e6, 1), 'source': short(source)}
      for text, (size, source) in worst
      if size
    ],
  }


def short(source: str) -> str:
  """The end of an instruction's origin: what tells one from another."""
  return source.removeprefix('jit(').partition('shard_map/')[2][-100:] or source[-100:]


def _described(item: hlo.Item, chip: Chip | None) -> dict[str, Any]:
  shapes = ', '.join(text for text, *_ in hlo.arrays(item.instruction.output))
  described: dict[str, Any] = {
    'group': item.group,
    'times': item.times,
    'output': shapes[:80],
    'source': short(item.instruction.source),
  }
  if chip:
    described['us'] = round(1e6 * item.cycles / chip.clock, 1)
  return described
