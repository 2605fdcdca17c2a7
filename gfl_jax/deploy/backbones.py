"""Backbones with ImageNet weights: where they come from, and what they must be."""

from collections.abc import Mapping
from typing import Any

from gfl_jax.deploy import weights
from gfl_jax.deploy.state_dicts import read_state_dict
from gfl_jax.models.resnet import ResNet


def load_backbone(variables: Mapping[str, Any], backbone_config: Any) -> dict[str, Any]:
  """A detector's variables with the ImageNet weights that its config names.

  Args:
    variables: of the detector.
    backbone_config: `model.backbone`; `pretrained` is a file of torchvision's weights.

  Raises:
    ValueError: a backbone that torchvision has no weights of; a file that does not fit.
  """
  if backbone_config.norm != 'frozen_batch_norm' or backbone_config.stem != 'conv7':
    raise ValueError(
      f'backbone.pretrained={backbone_config.pretrained!r} needs norm='
      f"'frozen_batch_norm' and stem='conv7', not {backbone_config.norm!r} and"
      f' {backbone_config.stem!r}'
    )
  if tuple(backbone_config.widths) != ResNet.widths:
    raise ValueError(
      f'backbone.pretrained={backbone_config.pretrained!r} needs widths='
      f'{ResNet.widths}, not {tuple(backbone_config.widths)}'
    )
  state_dict = read_state_dict(backbone_config.pretrained).arrays
  backbone = weights.from_torchvision_resnet(state_dict, backbone_config.depth)
  return {
    name: {**collection, 'backbone': backbone[name]}
    for name, collection in variables.items()
  }
