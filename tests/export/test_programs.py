"""Stored configs and exported programs, whatever training does to save memory."""

import json

import jax
import pytest

from gfl_jax.config import stored_config
from gfl_jax.errors import UserError
from gfl_jax.export import manifest, programs
from gfl_jax.models import build_detector, init_variables
from tests import tiny


def test_an_export_computes_nothing_again():
  config, texts = tiny.config(), []
  variables = init_variables(build_detector(config), jax.random.key(0))
  batch = {name: tiny.batch(1)[name] for name in manifest.INPUTS}
  for remat in ((), ('stage1', 'head')):
    config.model.remat = remat
    text = str(jax.make_jaxpr(programs.make_function(config))(variables, batch))
    texts.append(text)
  assert texts[0] == texts[1]


def test_a_config_stored_before_a_field_existed_is_what_it_was():
  values = json.loads(tiny.config().to_json())
  del values['model']['remat']
  config = stored_config(values)
  assert build_detector(config) == build_detector(tiny.config())
  values['model']['remat'] = ['head']
  assert list(stored_config(values).model.remat) == ['head']


def test_a_config_stored_with_box_and_score_twice_opens_where_both_agree():
  config = tiny.config()
  values = json.loads(config.to_json())
  values['model'] |= {'box': values['box'], 'score': values['score']}
  stored = stored_config(values)
  assert stored.to_json() == config.to_json()
  assert build_detector(stored) == build_detector(config)

  values['box'] = {**values['box'], 'kind': 'dirac'}
  with pytest.raises(UserError, match=r"(?s)box=.*'dirac'.*model\.box=.*'general'"):
    stored_config(values)
