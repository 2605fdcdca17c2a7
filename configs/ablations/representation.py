"""Table 2a: is a box side best a number, a Gaussian or a general distribution?

  python scripts/ablate.py --study=representation --base=demo_shapes --seeds=3
  python scripts/train.py \
    --config=configs/ablations/representation.py:atss_general_dfl@demo_shapes \
    --workdir=runs/general_dfl

Focal loss and a centerness branch in all rows, as in the paper. The paper's Gaussian
has no released code: ours follows its Table 5, a likelihood of each side and no box
loss; the weight 1 of the likelihood is our choice. Distances of Dirac and Gaussian rows
start at the base's box.scale, on FCOS too, where the original starts at 1.
"""

from ml_collections import ConfigDict

from configs.ablations import changes, table
from configs.ablations.table import Row

TITLE = 'Box representation'
TABLE = '2a'
QUESTION = 'Is a general distribution better than a number or a Gaussian for a side?'
BASELINE = 'atss_dirac'  # FCOS rows: fcos_dirac
NOTES = (
  "The paper's Gaussian has no released code: ours is a likelihood of each side, with "
  'no box loss and a weight of 1 that is our choice. Distances of Dirac and Gaussian '
  "rows start at the base's box.scale, on FCOS too, where the original starts at 1."
)

_BOXES = {
  'dirac': ('Dirac delta', changes.dirac, ''),
  'gaussian': (
    'Gaussian',
    changes.gaussian('gaussian_nll'),
    'likelihood of the sides only; its weight 1 is our choice',
  ),
  'general': ('general', changes.general, ''),
  'general_dfl': ('general with DFL', changes.general_dfl, ''),
}
_PAPER = {
  'fcos_dirac': (38.5, 56.8, 41.6, 22.4, 42.4, 49.1),
  'fcos_gaussian': (38.6, 56.5, 41.6, 21.7, 42.5, 50.0),
  'fcos_general': (38.8, 56.6, 42.0, 22.5, 42.9, 49.8),
  'fcos_general_dfl': (39.0, 57.0, 42.3, 22.6, 43.0, 50.6),
  'atss_dirac': (39.2, 57.4, 42.2, 23.0, 42.8, 51.1),
  'atss_gaussian': (39.3, 57.0, 42.4, 23.6, 42.9, 51.0),
  'atss_general': (39.3, 57.1, 42.5, 23.5, 43.0, 51.2),
  'atss_general_dfl': (39.5, 57.3, 42.8, 23.6, 43.2, 51.2),
}
ROWS = {
  f'{assigner.__name__}_{name}': Row(
    f'{assigner.__name__.upper()}, {title}',
    _PAPER[f'{assigner.__name__}_{name}'],
    changes.together(assigner, changes.separate('centerness'), box),
    note,
    baseline=f'{assigner.__name__}_dirac',
  )
  for assigner in (changes.atss, changes.fcos)
  for name, (title, box, note) in _BOXES.items()
}


def get_config(text: str = '') -> ConfigDict:
  """The config of 'ROW' or 'ROW@BASE'."""
  return table.row_config(ROWS, text)
