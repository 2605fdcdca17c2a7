"""Table 2c: Delta, the width of a bin.

  python scripts/ablate.py --study=bin_width --base=demo_shapes --seeds=3
  python scripts/train.py --config=configs/ablations/bin_width.py:range_2@demo_shapes \
    --workdir=runs/width2

GFL; Delta counts the base's own bin width. The paper says that n = 16 stays, which
can be read in two ways: the reach stays, so that wider bins are fewer (range_2), or
their number stays, so that wider bins reach further (count_2). Both are run; the
paper's number stands beside both readings, of which it fits one at most.
"""

from fractions import Fraction

from ml_collections import ConfigDict

from configs.ablations import changes, table
from configs.ablations.table import Row

TITLE = 'Width of a bin'
TABLE = '2c'
QUESTION = 'How fine must the bins of a side be?'
BASELINE = '1'

_PAPER = {
  '0.5': (40.2, 58.4, 43.0, 22.3, 43.8, 53.1),
  '1': (40.2, 58.6, 43.4, 23.0, 44.3, 53.0),
  '2': (39.9, 58.3, 42.9, 22.5, 43.8, 51.8),
  '4': (39.8, 58.5, 42.8, 22.8, 43.4, 52.3),
}
_NOTE = 'one of two readings of the paper'


def _range_kept(delta: str) -> Row:
  width = Fraction(delta)
  change = changes.together(changes.gfl, changes.bins(count=1 / width, width=width))
  return Row(f'Delta = {delta}, reach kept', _PAPER[delta], change, _NOTE)


def _count_kept(delta: str) -> Row:
  change = changes.together(changes.gfl, changes.bins(width=Fraction(delta)))
  return Row(f'Delta = {delta}, number of bins kept', _PAPER[delta], change, _NOTE)


ROWS = {
  '1': Row('Delta = 1', _PAPER['1'], changes.gfl),
  **{f'range_{delta}': _range_kept(delta) for delta in ('0.5', '2', '4')},
  **{f'count_{delta}': _count_kept(delta) for delta in ('0.5', '2', '4')},
}


def get_config(text: str = '') -> ConfigDict:
  """The config of 'ROW' or 'ROW@BASE'."""
  return table.row_config(ROWS, text)
