"""Table 1c: beta, the exponent of quality focal loss.

  python scripts/ablate.py --study=beta --base=demo_shapes --seeds=3
  python scripts/train.py --config=configs/ablations/beta.py:2@demo_shapes \
    --workdir=runs/beta2

ATSS with a joint score; boxes are four distances without an edge loss, as in the
paper. On the R-50 base the only approximations are those that score.py names for rows
with four distances.
"""

from ml_collections import ConfigDict

from configs.ablations import changes, table
from configs.ablations.table import Row

TITLE = 'Beta of quality focal loss'
TABLE = '1c'
QUESTION = 'How much less should QFL weigh scores that are already near their target?'
BASELINE = '2'
NOTES = ''

ROWS = {
  name: Row(
    f'beta = {name}',
    paper,
    changes.together(changes.atss, changes.joint_qfl(float(name)), changes.dirac),
  )
  for name, paper in {
    '0': (37.6, 55.4, 40.3),
    '1': (39.0, 58.1, 41.7),
    '2': (39.9, 58.5, 43.0),
    '2.5': (39.7, 58.1, 42.7),
    '4': (38.2, 55.4, 41.6),
  }.items()
}


def get_config(text: str = '') -> ConfigDict:
  """The config of 'ROW' or 'ROW@BASE'."""
  return table.row_config(ROWS, text)
