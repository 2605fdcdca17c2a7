"""Torch's state dicts (mmdet, torchvision) as our parameter trees, and back.

One table translates our names to theirs, in both directions.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax.typing import ArrayLike

from gfl_jax.errors import UserError
from gfl_jax.models.detector import as_config_dict, build_detector
from gfl_jax.models.resnet import ResNet
from gfl_jax.weights.trees import variable_shapes

# Applied one after the other to a path like 'backbone/stage1/block0/conv1/kernel'.
_RENAMES = (
  (r'/(kernel|scale)$', '/weight'),
  (r'/(mean|var)$', r'/running_\1'),
  (r'^backbone/stem/(conv|norm)', r'backbone/\g<1>1'),
  (r'/stage(\d)/block(\d+)', r'/layer\1/\2'),
  (r'/norm(\d)', r'/bn\1'),
  (r'/downsample_conv', '/downsample/0'),
  (r'/downsample_norm', '/downsample/1'),
  (r'^neck/lateral(\d)', r'neck/lateral_convs/\1/conv'),
  (r'^neck/output(\d)', r'neck/fpn_convs/\1/conv'),
  (r'^head/class_conv(\d+)', r'bbox_head/cls_convs/\1/conv'),
  (r'^head/class_norm(\d+)', r'bbox_head/cls_convs/\1/gn'),
  (r'^head/class_output', 'bbox_head/gfl_cls'),
  (r'^head/box_conv(\d+)', r'bbox_head/reg_convs/\1/conv'),
  (r'^head/box_norm(\d+)', r'bbox_head/reg_convs/\1/gn'),
  (r'^head/box_output', 'bbox_head/gfl_reg'),
  (r'^head/scale(\d)', r'bbox_head/scales/\1/scale'),
)
# The bin values: not parameters, but stored with them.
PROJECT_OF_MMDET_1 = 'bbox_head.distribution_project.project'
_PROJECTS = ('bbox_head.integral.project', PROJECT_OF_MMDET_1)


def from_mmdet(state_dict: Mapping[str, ArrayLike], config: Any) -> dict[str, Any]:
  """The variables of a detector from the state dict of mmdet's GFL.

  Args:
    state_dict: mmdet's names to arrays in torch's layout. mmdet 2.x and 3.x have the
      same names; 1.x (the authors' first code) has another name for the bin values.
    config: the whole experiment's config; it must describe the same detector.

  Returns:
    {'params': ..., 'batch_stats': ...} of numpy arrays, float32. Every leaf of
    build_detector(config) has an entry and every entry is used, except
    `num_batches_tracked` (not learned) and the bin values (only checked).

  Raises:
    ValueError: names or shapes that differ, the first ten named; bin values that differ
      from those of the config's `box`.
  """
  box = as_config_dict(config).box
  expected = np.linspace(box.start, box.stop, box.num_bins)
  for name in state_dict.keys() & set(_PROJECTS):
    project = np.asarray(state_dict[name])
    if project.shape != expected.shape or not np.allclose(project, expected):
      raise UserError(
        f'the state dict was trained with bins at {project}, the config has {expected}:'
        ' set box.start, box.stop and box.num_bins to theirs'
      )
  return fill(build_detector(config), state_dict, _torch_name, ignored=_PROJECTS)


def from_torchvision_resnet(
  state_dict: Mapping[str, ArrayLike],
  depth: int,
  *,
  groups: int = 1,
  group_width: int = 64,
) -> dict[str, Any]:
  """The variables of a ResNet or ResNeXt backbone from torchvision's state dict.

  Args:
    state_dict: torchvision's names to arrays in torch's layout; the classifier `fc`
      is not used.
    depth: 18, 34, 50 or 101.
    groups: of ResNeXt; 1 for ResNet.
    group_width: torchvision's width_per_group.

  Returns:
    {'params': ..., 'batch_stats': ...} of numpy arrays, float32: the subtree 'backbone'
    of each collection of a detector's variables.

  Raises:
    ValueError: names or shapes that differ, the first ten named.
  """
  return fill(
    ResNet(depth, groups=groups, group_width=group_width),
    state_dict,
    lambda path: _torch_name(f'backbone/{path}').removeprefix('backbone.'),
    ignored=('fc.',),
  )


def fill(
  module: nn.Module,
  state_dict: Mapping[str, ArrayLike],
  name_of: Callable[[str], str],
  ignored: tuple[str, ...],
) -> dict[str, Any]:
  """A module's variables from a state dict: one entry for each leaf, none left over.

  Args:
    module: takes an image.
    state_dict: names to arrays in torch's layout.
    name_of: translates our name of a leaf, such as 'stage1/block0/conv1/kernel'.
    ignored: beginnings of names that are not used; `num_batches_tracked` never is.

  Returns:
    {'params': ..., ...} of numpy arrays, float32.

  Raises:
    ValueError: names or shapes that differ, one named for each of the first ten layers;
      an entry of integers, or one that is not finite.
  """
  entries = {
    name: _from_torch(np.asarray(value))
    for name, value in state_dict.items()
    if not name.startswith(ignored) and not name.endswith('num_batches_tracked')
  }
  leaves: dict[str, Any] = traverse_util.flatten_dict(variable_shapes(module), sep='/')
  filled, shapes_differ, missing = {}, [], []
  for path, leaf in leaves.items():
    name = name_of(path.split('/', 1)[1])
    if name not in entries:
      missing.append((name, f'missing, the model has {path} {leaf.shape}'))
      continue
    entry = entries.pop(name)
    if entry.shape != leaf.shape:
      shapes_differ.append((name, f'{entry.shape} here, {leaf.shape} in the model'))
    filled[path] = _float32(name, entry)
  extra = [(name, f'{x.shape}, not in the model') for name, x in entries.items()]
  # Missing names last: a shape or an extra layer tells more about the checkpoint.
  problems = [*shapes_differ, *extra, *missing]
  if problems:
    layers: dict[str, str] = {}
    for name, problem in problems:
      layers.setdefault(name.rpartition('.')[0], f'\n  {name}: {problem}')
    first = ''.join(list(layers.values())[:10])
    raise UserError(
      f'{len(problems)} names of the state dict and of the model differ; check depth,'
      f' channels and classes (shapes are h, w, in, out):{first}'
    )
  return traverse_util.unflatten_dict(filled, sep='/')


def to_mmdet(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """The inverse of from_mmdet: our tree under mmdet's names, in torch's layout.

  Args:
    variables: a detector's variables, or {'params': tree} with a tree of the same
      structure, such as gradients.
  """
  return {
    _torch_name(path): _to_torch(np.asarray(leaf))
    for collection in variables.values()
    for path, leaf in traverse_util.flatten_dict(collection, sep='/').items()
  }


def renamed(path: str, renames: Iterable[tuple[str, str]]) -> str:
  """A leaf's name in torch.

  Args:
    path: of the leaf, such as 'stage1/block0/conv1/kernel'.
    renames: regular expressions and replacements, applied one after the other.
  """
  for pattern, replacement in renames:
    path = re.sub(pattern, replacement, path)
  return path.replace('/', '.')


def _torch_name(path: str) -> str:
  return renamed(path, _RENAMES)


def _to_torch(leaf: np.ndarray) -> np.ndarray:
  """Kernels [h, w, in, out] become [out, in, h, w]."""
  return leaf.transpose(3, 2, 0, 1) if leaf.ndim == 4 else leaf


def _from_torch(entry: np.ndarray) -> np.ndarray:
  return entry.transpose(2, 3, 1, 0) if entry.ndim == 4 else entry


def _float32(name: str, entry: np.ndarray) -> np.ndarray:
  if not jnp.issubdtype(entry.dtype, jnp.floating):  # numpy's knows no bfloat16
    raise UserError(
      f'{name} of the state dict is of {entry.dtype}: quantized parameters cannot be'
      ' read, save them as float32'
    )
  entry = entry.astype(np.float32, copy=False)
  if not np.isfinite(entry).all():
    raise UserError(
      f'{name} of the state dict has nan or infinite values: take another checkpoint'
    )
  return entry
