"""Costs of a compiled program on a chip: memory, time, and the time of its parts."""

import collections
import math
from typing import Any

import jax
from jax.extend import core

from scripts.tpu import hlo
from scripts.tpu.chips import Chip

LARGEST = 12  # length of the lists of instructions


def conv_macs(jaxpr: Any) -> int:
  """Number of multiplications of all convolutions in a jaxpr.

  Those in a loop count once for each trip. Of several branches, such as one for each
  platform, the cheapest counts. Zeros that dilation puts between elements do not count,
  so the gradient of a strided convolution costs as much as the convolution. Padding
  counts.

  Args:
    jaxpr: as `jax.make_jaxpr` returns it, with static shapes.
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
  # rhs_spec[0] is the kernel's axis of outputs, which includes the groups.
  outputs = kernel[parameters['dimension_numbers'].rhs_spec[0]]
  products = math.prod(out) * math.prod(kernel) // outputs
  # Gradients may have groups along the batch; the shapes include these already.
  return products // math.prod(parameters['lhs_dilation'])


def memory(compiled: Any, chip: Chip) -> dict[str, Any]:
  """Bytes on one chip by their use, and whether they fit.

  `peak` is the sum of what is there at once: arguments, code, temporaries, and outputs
  that do not reuse the memory of an argument (`aliased`).
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
  """Predictions for one run of a program on a chip, in ms; nothing is measured.

  Args:
    compiled: the program.
    items: its schedule.
    chip: the chip that runs it.
    model_flops: of the model's convolutions on one chip, each counted once.

  Returns:
    `compute` and `memory`: FLOPs and bytes at the chip's peak rates; `roofline`: the
    larger of the two; `optimal`: the least time by the compiler's cost analysis, which
    may be absurd (negative); `scheduled`: the sum of the compiler's estimates of all
    instructions that have one; `all_reduce`: each byte over the links twice; `step`:
    the larger of `scheduled` and `roofline`, plus `all_reduce`; `mfu`: the share of the
    chip's peak FLOPs in a step.
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
  """Number of collectives, and bytes of their results on one chip."""
  found = [
    item
    for item in items
    if item.group == 'collective' and not item.instruction.kind.endswith('-done')
  ]
  return {
    'count': sum(item.times for item in found),
    'bytes': sum(hlo.output_bytes(item) * item.times for item in found),
  }


def of_schedule(items: list[hlo.Item], chip: Chip) -> dict[str, Any]:
  """Everything about the instructions of a schedule that a JSON line holds."""
  return {
    'collectives': collectives(items),
    'groups': groups(items, chip),
    'largest': largest(items, chip),
    'without_estimate': without_estimate(items),
    'padding': padding(items),
  }


def groups(items: list[hlo.Item], chip: Chip) -> dict[str, dict[str, float]]:
  """For each class of cost: ms, instructions, and those without an estimate."""
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
  """The instructions other than convolutions with the largest estimates."""
  others = [item for item in items if item.group != 'convolution' and item.cycles]
  others.sort(key=lambda item: -item.cycles)
  us = lambda item: {'us': round(1e6 * item.cycles / chip.clock, 1)}
  return [_described(item) | us(item) for item in others[:LARGEST]]


def without_estimate(items: list[hlo.Item]) -> list[dict[str, Any]]:
  """Gathers, scatters and sorts without an estimate; the largest results come first."""
  costly = ('gather', 'scatter', 'sort')
  found = [item for item in items if item.group in costly and not item.cycles]
  found.sort(key=lambda item: -hlo.output_bytes(item) * item.times)
  return [_described(item) for item in found[:LARGEST]]


def padding(items: list[hlo.Item]) -> dict[str, Any]:
  """The share of written bytes that is padding of tiles, and the arrays with most."""
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
  """The end of an instruction's origin, which tells instructions apart."""
  return source.removeprefix('jit(').partition('shard_map/')[2][-100:] or source[-100:]


def _described(item: hlo.Item) -> dict[str, Any]:
  shapes = ', '.join(text for text, *_ in hlo.arrays(item.instruction.output))
  return {
    'group': item.group,
    'times': item.times,
    'output': shapes[:80],
    'source': short(item.instruction.source),
  }
