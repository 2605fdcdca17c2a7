"""Use of a predicted spread, or quality, in decoding. Not a table of the paper.

  python scripts/ablate.py --study=uncertainty --base=demo_shapes --seeds=3
  python scripts/train.py \
    --config=configs/ablations/uncertainty.py:kl_voting@demo_shapes \
    --workdir=runs/voting

KL-Loss with its variance voting, Gaussian YOLOv3's likelihood with its penalty on the
score, GFL's general distribution under the same voting, and IoU-Net's NMS, all on ATSS
with focal loss. The original systems have other networks; only their losses and
decoding are compared. A row that differs in decoding alone is compared with the row
that trains the same, and takes its trained network. Rows that are also in Tables 1a and
2a show the paper's numbers; in one results folder the studies use the same runs.
"""

from ml_collections import ConfigDict

from configs.ablations import changes, representation, score, table
from configs.ablations.table import Row

TITLE = 'Use of the spread in decoding'
TABLE = ''
QUESTION = 'Does a predicted spread or quality improve the boxes that are kept?'
BASELINE = 'dirac'
NOTES = (
  'The original systems of these losses and ways of decoding have other networks. A '
  'row that differs in decoding alone takes the trained network of the row that it is '
  'compared with, so their difference has no noise of training.'
)

_KL = changes.gaussian('kl')
_NLL = changes.gaussian('gaussian_nll')
_SHARED = 'also a row of Table 2a'


def _row(title, paper, *parts, quality='centerness', note='', baseline=None):
  change = changes.together(changes.atss, changes.separate(quality), *parts)
  return Row(title, paper, change, note, baseline)


ROWS = {
  'dirac': _row(
    'Dirac delta', representation.ROWS['atss_dirac'].paper, changes.dirac, note=_SHARED
  ),
  'kl': _row('Gaussian by KL-Loss', None, _KL, note='edge weight 1 is our choice'),
  'kl_voting': _row(
    'Gaussian by KL-Loss, variance voting',
    None,
    _KL,
    changes.variance_voting,
    note="sigma_t 0.01, as in the authors' code",
    baseline='kl',
  ),
  'gaussian_nll': _row(
    'Gaussian by likelihood',
    representation.ROWS['atss_gaussian'].paper,
    _NLL,
    note=_SHARED,
  ),
  'gaussian_nll_penalty': _row(
    'Gaussian by likelihood, score times (1 - spread)',
    None,
    _NLL,
    changes.uncertainty_penalty,
    note="Gaussian YOLOv3's score, with spreads in strides",
    baseline='gaussian_nll',
  ),
  'general_dfl': _row(
    'general with DFL',
    representation.ROWS['atss_general_dfl'].paper,
    changes.general_dfl,
    note=_SHARED,
  ),
  'general_dfl_voting': _row(
    'general with DFL, variance voting',
    None,
    changes.general_dfl,
    changes.variance_voting,
    baseline='general_dfl',
  ),
  'iou': _row(
    'Dirac delta, IoU branch',
    score.ROWS['atss_iou'].paper,
    changes.dirac,
    quality='iou',
    note='also a row of Table 1a',
  ),
  'iou_guided_nms': _row(
    'Dirac delta, IoU branch, IoU-guided NMS',
    None,
    changes.dirac,
    changes.iou_guided_nms,
    quality='iou',
    baseline='iou',
  ),
}


def get_config(text: str = '') -> ConfigDict:
  """The config of 'ROW' or 'ROW@BASE'."""
  return table.row_config(ROWS, text)
