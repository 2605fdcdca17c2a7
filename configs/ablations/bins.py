"""Table 2b: n, how far the bins reach at one width.

  python scripts/ablate.py --study=bins --base=demo_shapes --seeds=3
  python scripts/train.py --config=configs/ablations/bins.py:14@demo_shapes \
    --workdir=runs/bins14

GFL. On the R-50 base the rows are the paper's: bins at 0, 1, ..., n strides. On a base
with another grid, the bins keep their width and there are n/16 times as many of them.
"""

from fractions import Fraction

from ml_collections import ConfigDict

from configs.ablations import changes, table
from configs.ablations.table import Row

TITLE = 'Number of bins at one width'
TABLE = '2b'
QUESTION = 'How far must the bins of a side reach?'
BASELINE = '16'
NOTES = ''

ROWS = {
  name: Row(
    f'n = {name}',
    paper,
    changes.together(changes.gfl, changes.bins(count=Fraction(int(name), 16))),
    "n / 16 of the base's bins",
  )
  for name, paper in {
    '12': (40.1, 58.4, 43.1, 23.1, 43.8, 52.5),
    '14': (40.2, 58.3, 43.6, 23.3, 44.2, 52.2),
    '16': (40.2, 58.6, 43.4, 23.0, 44.3, 53.0),
    '18': (40.1, 58.1, 43.1, 22.6, 43.9, 52.6),
  }.items()
}


def get_config(text: str = '') -> ConfigDict:
  """The config of 'ROW' or 'ROW@BASE'."""
  return table.row_config(ROWS, text)
