"""What all backbones share: the names of their parts, and which of them are trained."""

from collections.abc import Sequence

from gfl_jax.errors import UserError

STAGE_NAMES = ('stem', 'stage1', 'stage2', 'stage3', 'stage4')
# The parts whose activations `model.remat` can have computed again.
REMAT_NAMES = (*STAGE_NAMES[1:], 'head')


def frozen_names(frozen_stages: int) -> tuple[str, ...]:
  """Names of the backbone's parts that `frozen_stages` leaves untrained.

  Args:
    frozen_stages: 0 trains everything; n in 1..4 freezes the stem and stages 1..n.

  Raises:
    ValueError: another number.
  """
  if frozen_stages not in range(5):
    raise UserError(f'backbone.frozen_stages={frozen_stages} must be 0 to 4')
  return STAGE_NAMES[: frozen_stages + 1] if frozen_stages else ()


def check_remat(names: Sequence[str]) -> tuple[str, ...]:
  """The parts whose activations the backward pass computes again, instead of keeping.

  A stage of the backbone then keeps its input alone, and each layer of the head's
  towers its input. Numbers and gradients stay, up to rounding; a stage costs its
  forward pass once more.

  Args:
    names: of `REMAT_NAMES`; none keeps everything.

  Raises:
    ValueError: a name that is not there.
  """
  if any(name not in REMAT_NAMES for name in names):
    raise UserError(f'model.remat={tuple(names)} must be of {list(REMAT_NAMES)}')
  return tuple(names)
