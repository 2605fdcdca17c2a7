"""What a predicted spread, or a quality, is good for when boxes are decoded.

  python scripts/ablate.py --study=uncertainty --base=demo_shapes --seeds=3
  python scripts/train.py \
    --config=configs/ablations/uncertainty.py:kl_voting@demo_shapes \
    --workdir=runs/voting

Not a table of the paper: KL-Loss with its variance voting, Gaussian YOLOv3's likelihood
with its penalty on the score, GFL's general distribution under the same voting, and
IoU-Net's suppression, all on ATSS with focal loss. Those systems had other networks:
their losses and decoding are what is compared. A row that only decodes differently is
compared with the row that trains the same, and takes its trained network. Rows that
Tables 1a and 2a have, too, show the paper's numbers, and share their runs.
"""

from ml_collections import ConfigDict

from configs.ablations import changes, representation, score, table
from configs.ablations.table import Row

TITLE = 'Use of the spread in decoding'
TABLE = ''
QUESTION = 'Does a predicted spread or quality improve the boxes that are kept?'
BASELINE = 'dirac'
NOTES = (
  'The systems that these losses and ways of decoding are from had other networks. '
  'A row that only decodes differently takes the trained network of the row that it '
  'is compared with, so their difference holds no noise of training.'
)

_KL = changes.gaussian('kl')
_NLL = changes.gaussian('gaussian_nll')
_SHARED = 'a row of Table 2a, too'


def _row(title, paper, *parts, quality='centerness', note='', baseline=None):
  change = changes.together(changes.atss, changes.separate(quality), *parts)
  return Row(title, paper, change, note, baseline)


ROWS = {
  'dirac': _row(
    'Dirac delta',
    representation.ROWS['atss_dirac'].paper,
    changes.dirac,
    note=_SHARED,
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
    note='a row of Table 1a, too',
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
