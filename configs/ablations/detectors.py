"""Table 1b: does QFL help other detectors?

  python scripts/ablate.py --study=detectors --base=demo_shapes --seeds=3
  python scripts/train.py \
    --config=configs/ablations/detectors.py:retinanet@demo_shapes \
    --workdir=runs/retinanet

The detectors are approximated, because only the choices of a config differ. RetinaNet
has its IoU thresholds and focal loss, but one square anchor of 4 strides per cell
instead of nine, our head, and the base's box loss on four distances instead of smooth
L1 on offsets. A point outside a box has no distances to its sides, so an anchor whose
center is outside the box that it overlaps is ignored, where RetinaNet's would learn.
FoveaBox has no quality and no centerness, and FCOS's assignment: FCOS's ranges of size
replace its overlapping ones, FCOS's center region its shrunk fovea. In both detectors
all positives have the same weight in the box loss. Each QFL row is compared with its
own detector. The paper's third detector, SSD512, is not built.
"""

from ml_collections import ConfigDict

from configs.ablations import changes, table
from configs.ablations.table import Row

TITLE = 'QFL on other detectors'
TABLE = '1b'
QUESTION = 'Does a joint score with QFL also help RetinaNet and FoveaBox?'
BASELINE = 'retinanet'  # FoveaBox's rows have their own
NOTES = (
  'Approximated: RetinaNet has one square anchor for each cell instead of nine and '
  "the base's box loss on four distances, FoveaBox has FCOS's assignment, and both "
  'have our head. The box loss of the two QFL rows weighs a positive by its class '
  'score, that of the two detectors weighs all alike. SSD512 is not built.'
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
    'RetinaNet', (35.6, 55.5, 38.1, 20.1, 39.4, 46.8), changes.max_iou, _no_quality
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
