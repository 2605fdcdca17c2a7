"""The detector: backbone, neck and head, built from a config."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jaxtyping import Array, Float, PyTree

from gfl_jax.config import choose
from gfl_jax.models import stages
from gfl_jax.models.efficientnet_lite import EfficientNetLite0
from gfl_jax.models.fpn import FPN
from gfl_jax.models.heads import DenseHead, Predictions
from gfl_jax.models.representations import REPRESENTATIONS
from gfl_jax.models.resnet import ResNet
from gfl_jax.models.scores import SCORES
from gfl_jax.ops.points import Points, make_points

_DTYPES = {'float32': jnp.float32, 'bfloat16': jnp.bfloat16}
# Modules that turn an image into C2..C5, of strides 4 to 32, with parts named as in
# stages.py; and the fields of `model.backbone` that each takes.
_SHARED = ('norm', 'norm_groups', 'frozen_stages')
BACKBONES = {
  'resnet': (ResNet, ('depth', 'widths', 'groups', 'group_width', 'stem', *_SHARED)),
  'efficientnet_lite0': (EfficientNetLite0, _SHARED),
}


class Detector(nn.Module):
  """Images to Predictions.

  The parts can be run alone, for example
  `detector.apply(variables, images, method=lambda d, x: d.backbone(x))` for C2..C5.
  """

  backbone: nn.Module
  neck: FPN
  head: DenseHead

  def __call__(
    self, images: Float[Array, 'b h w 3'], *, train: bool = False
  ) -> Predictions:
    """Runs the detector.

    Args:
      images: [B, H, W, 3] normalized RGB, zero in the padding.
      train: of no effect on this family: no layer draws or averages in training.
    """
    del train
    return self.head(self.pyramid(images))

  def pyramid(self, images: Float[Array, 'b h w 3']) -> tuple[Array, ...]:
    """The head's input: P3, P4, ... of strides 8, 16, ..."""
    return self.neck(self.backbone(images)[1:])


def build_detector(config: Any) -> Detector:
  """The detector that an experiment's config describes.

  Modules hold plain hashable values, so that equal configs give equal detectors
  and compiled functions are reused. `backbone.pretrained` is not read here: it says
  where the first variables come from, not what the detector is.

  Args:
    config: the whole experiment's config, a ConfigDict or nested dict; reads `model`,
      and `box` and `score`, on which the head's outputs depend.

  Raises:
    ValueError: an unknown kind, here; a size that does not fit, at the first call.
  """
  whole = as_config_dict(config)
  model = whole.model
  dtype = choose(_DTYPES, model.dtype, 'model.dtype')
  score = choose(SCORES, whole.score.kind, 'score.kind')
  representation = choose(REPRESENTATIONS, whole.box.kind, 'box.kind')
  remat = stages.check_remat(model.remat)
  backbone, fields = choose(BACKBONES, model.backbone.kind, 'backbone.kind')
  settings = {name: getattr(model.backbone, name) for name in fields}
  if 'widths' in settings:  # JSON has lists, which are not hashable
    settings['widths'] = tuple(settings['widths'])
  return Detector(
    backbone=backbone(**settings, remat=remat, dtype=dtype),
    neck=FPN(model.neck.channels, model.neck.num_levels, dtype),
    head=DenseHead(
      num_classes=model.num_classes,
      num_box_outputs=representation.num_outputs(whole.box),
      quality_branch=score.use == 'branch',
      channels=model.head.channels,
      num_convs=model.head.num_convs,
      norm_groups=model.head.norm_groups,
      prior_probability=model.head.prior_probability,
      remat='head' in remat,
      dtype=dtype,
    ),
  )


def init_variables(detector: Detector, key: Array) -> dict[str, Any]:
  """The variables before training: {'params': ...} and, if it has any, 'batch_stats'.

  The many small random draws take longer to compile than to run. So they are compiled
  once in a process for equal detectors, and on the CPU without optimization, which
  takes a sixth of the time.

  Args:
    detector: from build_detector.
    key: a PRNG key; equal keys give equal variables.
  """
  return _initializer()(detector, key, jnp.zeros((1, 64, 64, 3), jnp.float32))


# One jitted function for all detectors: a function of each would be compiled each time.
@functools.cache
def _initializer() -> Callable[..., dict[str, Any]]:
  on_cpu = jax.default_backend() == 'cpu'
  options = {'xla_backend_optimization_level': 0} if on_cpu else {}
  init = lambda detector, key, image: detector.init(key, image)
  return jax.jit(init, static_argnums=0, compiler_options=options)


def frozen_mask(params: PyTree, frozen_stages: int) -> PyTree[bool]:
  """A tree like `params`: True where the backbone is frozen.

  Gradients are zero there, but weight decay and momentum would still change the values.

  Args:
    params: of a detector.
    frozen_stages: the config's `model.backbone.frozen_stages`.
  """
  frozen = stages.frozen_names(frozen_stages)
  return jax.tree_util.tree_map_with_path(
    lambda path, _: path[0].key == 'backbone' and path[1].key in frozen, params
  )


def as_config_dict(config: Any) -> Any:
  """A ConfigDict or nested dict as a ConfigDict."""
  return ml_collections.ConfigDict(config)


def canvas_points(config: Any, canvas: Sequence[int]) -> Points:
  """The points of an experiment's pyramid on a canvas, in the order of Predictions.

  Args:
    config: the whole experiment's config (`points`, `model.neck.num_levels`).
    canvas: (height, width) in pixels.
  """
  strides = [8 * 2**level for level in range(config.model.neck.num_levels)]
  offset, anchor_scale = config.points.offset, config.points.anchor_scale
  return make_points(canvas, strides, offset=offset, anchor_scale=anchor_scale)


def network_input(config: Any, batch: Mapping[str, Any]) -> Float[Array, 'b h w 3']:
  """(images - mean) / std inside the images, zeros on the canvas around them.

  Zeros are the mean color: as in the recipe, padding comes after normalizing.

  Args:
    config: the whole experiment's config; `data.mean` and `data.std` have a number in
      [0, 255] for each channel.
    batch: `images` [B, H, W, 3] uint8 RGB, each at the top left of its canvas, and
      `image_sizes` [B, 2], the (height, width) of each on its canvas in pixels.
  """
  images, sizes = batch['images'], jnp.asarray(batch['image_sizes'])
  mean, std = (
    np.asarray(x, np.float32).reshape(1, 1, 1, 3)
    for x in (config.data.mean, config.data.std)
  )
  heights, widths = sizes[:, :, None].transpose(1, 0, 2)
  rows = np.arange(images.shape[1])[None] < heights
  columns = np.arange(images.shape[2])[None] < widths
  inside = rows[:, :, None, None] & columns[:, None, :, None]
  return jnp.where(inside, (images - mean) / std, 0)
