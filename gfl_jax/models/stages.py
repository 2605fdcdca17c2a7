"""What all backbones share: the names of their parts, and which of them are trained."""

STAGE_NAMES = ('stem', 'stage1', 'stage2', 'stage3', 'stage4')


def frozen_names(frozen_stages: int) -> tuple[str, ...]:
  """Names of the backbone's parts that `frozen_stages` leaves untrained.

  Args:
    frozen_stages: 0 trains everything; n in 1..4 freezes the stem and stages 1..n.

  Raises:
    ValueError: another number.
  """
  if frozen_stages not in range(5):
    raise ValueError(f'backbone.frozen_stages={frozen_stages} must be 0 to 4')
  return STAGE_NAMES[: frozen_stages + 1] if frozen_stages else ()
