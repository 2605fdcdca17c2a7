"""The costs of compiled programs as text."""

import json
from collections.abc import Mapping, Sequence
from typing import Any


def report(line: Mapping[str, Any]) -> str:
  """A program's numbers, one per line.

  Args:
    line: as `programs.compiled` returns it.
  """
  head = (
    f'{line["program"]}: {line["backbone"]}, {line["dtype"]}, '
    f'{line["images_per_chip"]} images of {"x".join(map(str, line["canvas"]))} per chip'
    f', remat {",".join(line["remat"]) or "none"}, accumulate {line["accumulate"]}'
    f'{", " if line["options"] else ""}{_options(line)}; '
    f'{line["topology"]}, {line["chips"]} chips (jax {line["jax"]}, libtpu '
    f'{line["libtpu"]})'
  )
  if 'ms' not in line:
    return f'{head}\n  {shortage(line)}'
  memory, ms = line['memory'], line['ms']
  rows = [
    ('memory per chip', f'{_gb(memory["peak"])} of {_gb(memory["hbm"])}'),
    *((f'  {name}', _gb(memory[name])) for name in _PARTS),
    ('convolutions', f'{line["model_tflop_per_image"]} TFLOP an image'),
    ("compiler's count", f'{line["compiler_tflop"]} TFLOP, {line["compiler_gb"]} GB'),
    ('at peak FLOP/s', f'{ms["compute"]:.2f} ms'),
    ('at peak bytes/s', f'{ms["memory"]:.2f} ms'),
    ('roofline', f'{ms["roofline"]:.2f} ms, the larger of the two'),
    ("compiler's least", f'{ms["optimal"]:.2f} ms{_doubt(ms)}'),
    ('scheduled', f'{ms["scheduled"]:.2f} ms'),
    ('all-reduce', f"{ms['all_reduce']:.2f} ms at the links' speed"),
    (
      'predicted step',
      f'{ms["step"]:.2f} ms = {line["images_per_s"]:.0f} images/s, MFU '
      f'{100 * line["mfu"]:.1f} %',
    ),
    (
      'collectives',
      f'{line["collectives"]["count"]}, {line["collectives"]["bytes"] / 1e6:.1f} MB',
    ),
    ('padding', f'{100 * line["padding"]["share"]:.1f} % of what is written'),
    *(
      [('counted once', f'{line["unknown_loops"]} loops of unknown length')]
      if line['unknown_loops']
      else []
    ),
    *(
      (f'  {x["array"]}', f'{x["mb"]} MB more: {x["source"]}')
      for x in line['padding']['worst']
    ),
  ]
  parts = [
    head,
    *(f'  {name:22} {text}' for name, text in rows),
    '  where the time goes',
  ]
  total = sum(group['ms'] for group in line['groups'].values())
  parts += [
    f'    {name:20} {group["ms"]:9.2f} ms {100 * group["ms"] / max(total, 1e-9):5.1f} %'
    f' {group["count"]:6} instructions, {group["without_estimate"]} without estimate'
    for name, group in line['groups'].items()
  ]
  parts.append('  largest beside convolutions')
  parts += [f'    {x["us"]:9.1f} us {_item(x)}' for x in line['largest']]
  parts.append('  gathers, scatters and sorts without an estimate')
  parts += [f'    {_item(x)}' for x in line['without_estimate']]
  return '\n'.join(parts)


_PARTS = ('arguments', 'outputs', 'aliased', 'temporaries', 'code')


def shortage(line: Mapping[str, Any]) -> str:
  """How much memory a program lacks, in words."""
  memory = line['memory']
  if memory['peak'] is None:
    return f'more than {_gb(memory["hbm"])}, the compiler does not say how much'
  usable = memory.get('usable') or memory['hbm']
  return f'needs {_gb(memory["peak"])} of {_gb(usable)} that a chip has'


COLUMNS = (
  'slice',
  'program',
  'trunk',
  'canvas',
  'images per chip',
  'remat',
  'accumulate',
  'options',
  'memory per chip',
  'temporaries',
  'scheduled',
  'predicted step',
  'images/s',
  'MFU',
  'beside convolutions',
)


def table(lines: Sequence[Mapping[str, Any]]) -> str:
  """A Markdown table with a row for each compilation."""
  rows = [COLUMNS, ['---'] * len(COLUMNS), *(_row(line) for line in lines)]
  return '\n'.join('| ' + ' | '.join(row) + ' |' for row in rows)


def _row(line: Mapping[str, Any]) -> list[str]:
  memory = line['memory']
  what = [
    line['topology'],
    line['program'],
    line['dtype'],
    ' x '.join(map(str, line['canvas'])),
    str(line['images_per_chip']),
    ', '.join(line['remat']) or '–',
    str(line['accumulate']),
    _options(line) or '–',
  ]
  if 'ms' not in line:
    return [*what, f'**{shortage(line)}**', *['–'] * 6]
  ms, groups = line['ms'], line['groups']
  fits = '' if memory['fits'] else ' **does not fit**'
  beside = 1 - groups.get('convolution', {'ms': 0.0})['ms'] / max(ms['scheduled'], 1e-9)
  return [
    *what,
    _gb(memory['peak']) + fits,
    _gb(memory['temporaries']),
    f'{ms["scheduled"]:.1f} ms',
    f'{ms["step"]:.1f} ms',
    f'{line["images_per_s"]:,.0f}',
    f'{100 * line["mfu"]:.1f} %',
    f'{100 * beside:.0f} %',
  ]


def _options(line: Mapping[str, Any]) -> str:
  return ', '.join(f'{k}={json.dumps(v)}' for k, v in line['options'].items())


def _gb(size: float) -> str:
  return f'{size / 1e9:.2f} GB'


def _doubt(ms: Mapping[str, float]) -> str:
  least = 0.5 * ms['compute']
  return '' if ms['optimal'] > least else ', not plausible'


def _item(item: Mapping[str, Any]) -> str:
  return f'x{item["times"]} {item["group"]:10} {item["output"]}  {item["source"]}'
