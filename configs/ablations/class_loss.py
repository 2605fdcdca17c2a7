"""Class losses and their labels on one head. Not a table of the paper.

  python scripts/ablate.py --study=class_loss --base=demo_shapes --seeds=3
  python scripts/train.py \
    --config=configs/ablations/class_loss.py:varifocal@demo_shapes \
    --workdir=runs/varifocal

ATSS with four distances in all rows. CornerNet's labels decrease with the distance from
the center of a box; QFL's and varifocal's are the IoU of the predicted box; focal loss
has hard labels, with and without an IoU branch. Rows that are also in Table 1a show its
numbers, and in one results folder both studies use the same runs.

The box loss differs, too, because each system is as its authors have it: the joint rows
weigh a positive by its class score, all others by centerness.
"""

from ml_collections import ConfigDict

from configs.ablations import changes, score, table
from configs.ablations.table import Row

TITLE = 'Class losses and their labels'
TABLE = ''
QUESTION = 'Which labels of the class score are best on the same head?'
BASELINE = 'focal'
NOTES = (
  'The box loss differs, too: the joint rows weigh a positive by its class score, all '
  'others by centerness.'
)

_SHARED = 'also a row of Table 1a'
_ROWS = {
  'focal': (
    'focal, hard labels',
    score.ROWS['atss_none'].paper,
    changes.separate('none'),
    _SHARED,
  ),
  'focal_iou': (
    'focal, and an IoU branch',
    score.ROWS['atss_iou'].paper,
    changes.separate('iou'),
    _SHARED,
  ),
  'gaussian_focal': (
    "CornerNet's focal, labels by distance to the center",
    None,
    changes.gaussian_focal,
    "CornerNet's alpha 2, gamma 4 and least overlap 0.7",
  ),
  'quality_focal': (
    'quality focal, IoU labels',
    score.ROWS['atss_joint'].paper,
    changes.joint_qfl(2.0),
    _SHARED,
  ),
  'varifocal': (
    'varifocal, IoU labels',
    None,
    changes.joint_varifocal,
    "VarifocalNet's alpha 0.75, gamma 2; without its star-shaped convolution",
  ),
}
ROWS = {
  name: Row(title, paper, changes.together(changes.atss, loss, changes.dirac), note)
  for name, (title, paper, loss, note) in _ROWS.items()
}


def get_config(text: str = '') -> ConfigDict:
  """The config of 'ROW' or 'ROW@BASE'."""
  return table.row_config(ROWS, text)
