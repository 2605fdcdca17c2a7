"""Table 1b: does QFL help other detectors?

  python scripts/ablate.py --study=detectors --base=demo_shapes --seeds=3
  python scripts/train.py \
    --config=configs/ablations/detectors.py:retinanet@demo_shapes \
    --workdir=runs/retinanet

Approximated, for only the choices of a config differ. RetinaNet: its IoU thresholds
and focal loss, but one square anchor of 4 strides for each cell instead of nine, our
head, and the base's box loss on four distances instead of smooth L1 on offsets. A
point outside a box has no distances to its sides: an anchor whose centre is not in the
box that it overlaps is ignored where RetinaNet's would learn. FoveaBox: no quality and
no centerness, FCOS's assignment; its overlapping ranges of size become FCOS's ranges,
and its shrunk fovea FCOS's centre region. Positives weigh alike in the box loss of
both. Each QFL row is compared with its own detector. The paper's third detector,
SSD512, is not built.
"""

from ml_collections import ConfigDict

from configs.ablations import changes, table
from configs.ablations.table import Row

TITLE = 'QFL on other detectors'
TABLE = '1b'
QUESTION = 'Does a joint score with QFL help RetinaNet and FoveaBox, too?'
BASELINE = 'retinanet'  # of its own row with QFL; FoveaBox is that of its own
NOTES = (
  'Approximated: RetinaNet has one square anchor for each cell instead of nine and '
  "the base's box loss on four distances, FoveaBox has FCOS's assignment, and both "
  'have our head. The two QFL rows also weigh a positive in the box loss by its '
  'class score, where their detectors weigh all alike. SSD512 is not built.'
)


def _no_quality(c: ConfigDict) -> None:
  changes.separate('none')(c)
  c.box_loss.weighting = 'uniform'


def _row(title, paper, assigner, score, baseline=None):
  return Row(
    title,
    paper,
    changes.together(assigner, score, changes.dirac),
    'approximated: only the choices of a config differ',
    baseline,
  )


ROWS = {
  'retinanet': _row(
    'RetinaNet',
    (35.6, 55.5, 38.1, 20.1, 39.4, 46.8),
    changes.max_iou,
    _no_quality,
  ),
  'retinanet_qfl': _row(
    'RetinaNet with QFL',
    (36.4, 56.3, 39.1, 20.4, 40.0, 48.7),
    changes.max_iou,
    changes.joint_qfl(2.0),
    baseline='retinanet',
  ),
  'foveabox': _row(
    'FoveaBox',
    (36.4, 55.8, 38.8, 19.4, 40.4, 47.7),
    changes.fcos,
    _no_quality,
    baseline='foveabox',
  ),
  'foveabox_qfl': _row(
    'FoveaBox with QFL',
    (37.0, 55.7, 39.6, 20.2, 41.2, 48.8),
    changes.fcos,
    changes.joint_qfl(2.0),
    baseline='foveabox',
  ),
}


def get_config(text: str = '') -> ConfigDict:
  """The config of 'ROW' or 'ROW@BASE'."""
  return table.row_config(ROWS, text)
