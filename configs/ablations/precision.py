"""Accuracy with bfloat16 and with float32. Not a table of the paper.

  python scripts/ablate.py --study=precision --base=demo_shapes --seeds=3
  python scripts/train.py --config=configs/ablations/precision.py:bfloat16@demo_shapes \
    --workdir=runs/bfloat16

Backbone, pyramid and towers compute in the given type. The sums of their norms,
parameters, optimizer, logits, losses and decoding are always float32.
"""

from ml_collections import ConfigDict

from configs.ablations import changes, table
from configs.ablations.table import Row

TITLE = 'Precision of the trunk'
TABLE = ''
QUESTION = 'Is the AP with a trunk in bfloat16 as high as with one in float32?'
BASELINE = 'float32'
NOTES = ''

ROWS = {
  dtype: Row(dtype, None, changes.trunk(dtype)) for dtype in ('float32', 'bfloat16')
}


def get_config(text: str = '') -> ConfigDict:
  """The config of 'ROW' or 'ROW@BASE'."""
  return table.row_config(ROWS, text)
