"""The detector: backbone, neck and head, built from a config."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
from jaxtyping import Array, Float, PyTree

from gfl_jax.config import choose
from gfl_jax.models import stages
from gfl_jax.models.backbones import build_backbone
from gfl_jax.models.fpn import FPN
from gfl_jax.models.heads import DenseHead, Predictions
from gfl_jax.models.representations import REPRESENTATIONS
from gfl_jax.models.scores import SCORES
from gfl_jax.ops import images, points

Config = ml_collections.ConfigDict | Mapping[str, Any]

_DTYPES = {'float32': jnp.float32, 'bfloat16': jnp.bfloat16}


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
      images: [B, H, W, 3] normalised RGB, zero in the padding.
      train: of no effect on this family: no layer draws or averages in training.
    """
    del train
    return self.head(self.pyramid(images))

  def pyramid(self, images: Float[Array, 'b h w 3']) -> tuple[Array, ...]:
    """The head's input: P3, P4, ... of strides 8, 16, ..."""
    return self.neck(self.backbone(images)[1:])


def build_detector(config: Config) -> Detector:
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
  return Detector(
    backbone=build_backbone(model.backbone, dtype, remat),
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

  The many small random draws take longer to compile than to run: on the CPU they are
  compiled without optimisation, which is 6 times faster, and anywhere once in a process
  for equal detectors.

  Args:
    detector: from build_detector.
    key: a PRNG key; equal keys give equal variables.
  """
  return _initializer()(detector, key, jnp.zeros((1, 64, 64, 3), jnp.float32))


# The detector is a static argument: an `init` of its own would be compiled each time.
@functools.cache
def _initializer() -> Callable[..., dict[str, Any]]:
  on_cpu = jax.default_backend() == 'cpu'
  options = {'xla_backend_optimization_level': 0} if on_cpu else {}
  init = lambda detector, key, image: detector.init(key, image)
  return jax.jit(init, static_argnums=0, compiler_options=options)


def frozen_mask(params: PyTree, frozen_stages: int) -> PyTree[bool]:
  """A tree like `params`: True where the backbone is frozen.

  Gradients are zero there, but weight decay and momentum would still move them.

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


def make_anchors(config: Any, canvas: Sequence[int]) -> points.Points:
  """The points of an experiment's pyramid on a canvas, in the order of Predictions.

  Args:
    config: the whole experiment's config (`points`, `model.neck.num_levels`).
    canvas: (height, width) in pixels.
  """
  strides = [8 * 2**level for level in range(config.model.neck.num_levels)]
  return points.make_points(
    canvas,
    strides,
    offset=config.points.offset,
    anchor_scale=config.points.anchor_scale,
  )


def network_input(config: Any, batch: Mapping[str, Any]) -> Float[Array, 'b h w 3']:
  """A batch's uint8 images as the detector takes them, in training and evaluation.

  Args:
    config: the whole experiment's config (`data.mean`, `data.std`).
    batch: `images` [B, H, W, 3] uint8 and `image_sizes` [B, 2].
  """
  return images.normalize_images(
    batch['images'],
    batch['image_sizes'],
    mean=tuple(config.data.mean),
    std=tuple(config.data.std),
  )
