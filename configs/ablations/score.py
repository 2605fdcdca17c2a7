"""Table 1a: how is the quality of a box estimated, and used?

  python scripts/ablate.py --study=score --base=demo_shapes --seeds=3
  python scripts/train.py --config=configs/ablations/score.py:atss_joint@demo_shapes \
    --workdir=runs/joint

Six ways on FCOS and on ATSS; boxes are four distances without an edge loss. Different
from the paper's rows: both have the base's box loss and weight (FCOS's own code has
weight 1); ATSS regresses FCOS's four distances instead of offsets to an anchor, so that
one head serves all rows; and on FCOS the distances start at the base's box.scale, not
at 1.

Two things differ between a joint row and the others, because each is as its authors
have it: the score, and the weight of a positive in the box loss. This weight is the
class score in joint rows and centerness in all others, also in those without quality or
with an IoU.
"""

from ml_collections import ConfigDict

from configs.ablations import changes, table
from configs.ablations.table import Row

TITLE = 'Quality estimate: separate, guiding, joint'
TABLE = '1a'
QUESTION = 'Is a joint score better than none, a separate branch, or a guided loss?'
BASELINE = 'atss_centerness'  # FCOS rows: fcos_centerness
NOTES = (
  'Two things differ between a joint row and the others: the score, and the weight of '
  'a positive in the box loss, which is its class score in joint rows and its '
  "centerness in all others. Boxes are four distances that start at the base's "
  "box.scale, with the base's box loss and weight, on ATSS and FCOS alike."
)

_SCORES = {
  'none': ('no quality', changes.separate('none')),
  'centerness': ('centerness branch', changes.separate('centerness')),
  'iou': ('IoU branch', changes.separate('iou')),
  'centerness_guided': ('centerness-guided', changes.separate('centerness_guided')),
  'iou_guided': ('IoU-guided', changes.separate('iou_guided')),
  'joint': ('joint with QFL', changes.joint_qfl(2.0)),
}
_PAPER = {
  'fcos_none': (37.8, 56.2, 40.8, 21.2, 42.1, 48.2),
  'fcos_centerness': (38.5, 56.8, 41.6, 22.4, 42.4, 49.1),
  'fcos_iou': (38.7, 56.7, 42.0, 21.6, 43.0, 50.3),
  'fcos_centerness_guided': (37.9, 56.7, 40.7, 21.2, 42.1, 49.4),
  'fcos_iou_guided': (38.2, 57.0, 41.1, 22.5, 42.2, 48.9),
  'fcos_joint': (39.0, 57.8, 41.9, 22.0, 43.1, 51.0),
  'atss_none': (38.0, 56.5, 40.7, 20.6, 42.1, 49.1),
  'atss_centerness': (39.2, 57.4, 42.2, 23.0, 42.8, 51.1),
  'atss_iou': (39.6, 57.6, 43.0, 23.3, 43.7, 51.2),
  'atss_centerness_guided': (38.2, 56.2, 41.0, 21.5, 41.9, 49.7),
  'atss_iou_guided': (38.9, 57.4, 41.8, 22.8, 42.4, 50.6),
  'atss_joint': (39.9, 58.5, 43.0, 22.4, 43.9, 52.7),
}
ROWS = {
  f'{assigner.__name__}_{name}': Row(
    f'{assigner.__name__.upper()}, {title}',
    _PAPER[f'{assigner.__name__}_{name}'],
    changes.together(assigner, score, changes.dirac),
    baseline=f'{assigner.__name__}_centerness',
  )
  for assigner in (changes.atss, changes.fcos)
  for name, (title, score) in _SCORES.items()
}


def get_config(text: str = '') -> ConfigDict:
  """The config of 'ROW' or 'ROW@BASE'."""
  return table.row_config(ROWS, text)
