"""GFL, ResNet-50, 24 epochs, shorter sides of 480 to 800 px: the authors' 2x recipe.

  python scripts/train.py --config=configs/gfl_r50_fpn_2x_ms_coco.py \
    --workdir=runs/r50_2x --config.model.backbone.pretrained=resnet50.pth

Needs the data and weights of gfl_r50_fpn_1x_coco.py. Images of all sizes are padded to
the two canvases of that recipe, so training compiles the same two programs. Published:
AP 42.9 on val2017 (mmdetection). Not run here yet. Cost: twice that of 1x.
"""

import ml_collections

from configs import gfl_r50_fpn_1x_coco


def get_config() -> ml_collections.ConfigDict:
  """The 1x recipe, twice as long and at several scales."""
  c = gfl_r50_fpn_1x_coco.get_config()
  c.epochs = 24.0
  c.schedule.decay_epochs = (16, 22)
  c.data.short_side = (480, 800)
  return c
