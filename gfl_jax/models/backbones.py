"""The families of backbones: each turns an image into C2..C5, strides 4 to 32.

All name their parts as `stages` says, so that frozen stages mean the same in each.
"""

from typing import Any

import flax.linen as nn
from jax.typing import DTypeLike

from gfl_jax.config import choose
from gfl_jax.models.efficientnet_lite import EfficientNetLite0
from gfl_jax.models.resnet import ResNet


def build_backbone(config: Any, dtype: DTypeLike, remat: tuple[str, ...]) -> nn.Module:
  """The backbone that a config's `model.backbone` describes.

  Args:
    config: ConfigDict; what it says beside the fields that its kind reads is not used.
    dtype: type of the features; parameters are float32.
    remat: stages whose activations the backward pass computes again.

  Raises:
    ValueError: an unknown `kind`.
  """
  return choose(BACKBONES, config.kind, 'backbone.kind')(config, dtype, remat)


def _resnet(config, dtype, remat):
  return ResNet(
    depth=config.depth,
    widths=tuple(config.widths),
    groups=config.groups,
    group_width=config.group_width,
    stem=config.stem,
    norm=config.norm,
    norm_groups=config.norm_groups,
    frozen_stages=config.frozen_stages,
    remat=remat,
    dtype=dtype,
  )


def _efficientnet_lite0(config, dtype, remat):
  return EfficientNetLite0(
    norm=config.norm,
    norm_groups=config.norm_groups,
    frozen_stages=config.frozen_stages,
    remat=remat,
    dtype=dtype,
  )


BACKBONES = {'resnet': _resnet, 'efficientnet_lite0': _efficientnet_lite0}
