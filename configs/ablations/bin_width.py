"""Table 2c: Delta, the width of a bin; the reach of the bins stays.

  python scripts/ablate.py --study=bin_width --base=demo_shapes --seeds=3
  python scripts/train.py --config=configs/ablations/bin_width.py:2@demo_shapes \
    --workdir=runs/width2

GFL; Delta is a multiple of the base's bin width. The paper says that n stays 16, which
has two readings: the reach stays, so wider bins are fewer (this study), or the number
of bins stays, so wider bins reach further (bin_width_count). The paper's numbers stand
beside both studies and fit at most one.
"""

from fractions import Fraction

from ml_collections import ConfigDict

from configs.ablations import changes, table
from configs.ablations.table import Row

TITLE = 'Width of a bin, reach kept'
TABLE = '2c'
QUESTION = 'How fine must the bins of a side be?'
BASELINE = '1'
NOTES = (
  'The paper says that n stays 16, which has two readings. Here the reach of the bins '
  "stays, so wider bins are fewer, and Delta is a multiple of the base's bin width. "
  "The paper's numbers fit at most one reading; the other one is bin_width_count."
)

PAPER = {
  '0.5': (40.2, 58.4, 43.0, 22.3, 43.8, 53.1),
  '1': (40.2, 58.6, 43.4, 23.0, 44.3, 53.0),
  '2': (39.9, 58.3, 42.9, 22.5, 43.8, 51.8),
  '4': (39.8, 58.5, 42.8, 22.8, 43.4, 52.3),
}
ROWS = {
  delta: Row(
    f'Delta = {delta}',
    paper,
    changes.together(
      changes.gfl, changes.bins(count=1 / Fraction(delta), width=Fraction(delta))
    ),
    'one of two readings of the paper',
  )
  for delta, paper in PAPER.items()
}


def get_config(text: str = '') -> ConfigDict:
  """The config of 'ROW' or 'ROW@BASE'."""
  return table.row_config(ROWS, text)
