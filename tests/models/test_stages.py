import pytest

from gfl_jax.models import stages


def test_frozen_names_are_the_stem_and_the_first_stages():
  assert stages.frozen_names(0) == ()
  assert stages.frozen_names(2) == ('stem', 'stage1', 'stage2')
  assert stages.frozen_names(4) == stages.STAGE_NAMES

  for number in (-1, 5):
    with pytest.raises(ValueError, match=f'frozen_stages={number} '):
      stages.frozen_names(number)
