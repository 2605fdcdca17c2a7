"""Table 3: what QFL and DFL each contribute.

  python scripts/ablate.py --study=contributions --base=demo_shapes --seeds=3
  python scripts/train.py --config=configs/ablations/contributions.py:both@demo_shapes \
    --workdir=runs/both

ATSS with a centerness branch and four distances is the baseline; QFL makes the score
joint, DFL makes each side a distribution. 'both' is GFL, which is the base unchanged.
"""

from ml_collections import ConfigDict

from configs.ablations import changes, table
from configs.ablations.table import Row

TITLE = 'Contributions of QFL and DFL'
TABLE = '3'
QUESTION = 'Does each of QFL and DFL help alone, and do their gains add up?'
BASELINE = 'none'
NOTES = ''

ROWS = {
  'none': Row('neither', (39.2, 57.4, 42.2), changes.atss_baseline),
  'qfl': Row(
    'QFL',
    (39.9, 58.5, 43.0),
    changes.together(changes.atss, changes.joint_qfl(2.0), changes.dirac),
  ),
  'dfl': Row(
    'DFL',
    (39.5, 57.3, 42.8),
    changes.together(changes.atss, changes.separate('centerness'), changes.general_dfl),
  ),
  'both': Row('QFL and DFL', (40.2, 58.6, 43.4), changes.gfl),
}


def get_config(text: str = '') -> ConfigDict:
  """The config of 'ROW' or 'ROW@BASE'."""
  return table.row_config(ROWS, text)
