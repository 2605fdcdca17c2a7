"""Table 2c: Delta, the width of a bin; the number of bins stays.

  python scripts/ablate.py --study=bin_width_count --base=demo_shapes --seeds=3
  python scripts/train.py --config=configs/ablations/bin_width_count.py:2@demo_shapes \
    --workdir=runs/width_count2

GFL; Delta is a multiple of the base's bin width, so wider bins reach further.
bin_width.py explains the two readings of the paper. In one results folder both studies
use the same runs of Delta = 1.
"""

from fractions import Fraction

from ml_collections import ConfigDict

from configs.ablations import bin_width, changes, table
from configs.ablations.table import Row

TITLE = 'Width of a bin, number of bins kept'
TABLE = '2c'
QUESTION = 'How fine must the bins of a side be, and how far must they reach?'
BASELINE = '1'
NOTES = (
  'The paper says that n stays 16, which has two readings. Here the number of bins '
  "stays, so wider bins reach further, and Delta is a multiple of the base's bin "
  "width. The paper's numbers fit at most one reading; the other one is bin_width."
)

ROWS = {
  delta: Row(
    f'Delta = {delta}',
    paper,
    changes.together(changes.gfl, changes.bins(width=Fraction(delta))),
    'one of two readings of the paper',
  )
  for delta, paper in bin_width.PAPER.items()
}


def get_config(text: str = '') -> ConfigDict:
  """The config of 'ROW' or 'ROW@BASE'."""
  return table.row_config(ROWS, text)
