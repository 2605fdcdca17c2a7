"""The parts of every backbone: their names, and which are frozen or recomputed."""

from collections.abc import Sequence

from gfl_jax.errors import UserError

STAGE_NAMES = ('stem', 'stage1', 'stage2', 'stage3', 'stage4')
# The parts that `model.remat` may name: the backward pass recomputes their activations.
REMAT_NAMES = (*STAGE_NAMES[1:], 'head')


def frozen_names(frozen_stages: int) -> tuple[str, ...]:
  """Names of the parts of the backbone that are not trained.

  Args:
    frozen_stages: 0 trains everything; n in 1..4 freezes the stem and stages 1..n.

  Raises:
    ValueError: another number.
  """
  if frozen_stages not in range(5):
    raise UserError(f'backbone.frozen_stages={frozen_stages} must be 0 to 4')
  return STAGE_NAMES[: frozen_stages + 1] if frozen_stages else ()


def check_remat(names: Sequence[str]) -> tuple[str, ...]:
  """The parts whose activations the backward pass recomputes instead of storing.

  For such a stage of the backbone only its input is stored, and for the head the input
  of each layer of its towers. Loss and gradients stay the same up to rounding; the
  forward pass of these parts runs twice.

  Args:
    names: some of `REMAT_NAMES`; with none, everything is stored.

  Raises:
    ValueError: another name.
  """
  if any(name not in REMAT_NAMES for name in names):
    raise UserError(f'model.remat={tuple(names)}: each must be in {list(REMAT_NAMES)}')
  return tuple(names)
