"""A config that cannot run is refused at once, by the field and its value."""

import json

import ml_collections
import pytest

from configs import bccd, demo_shapes, gfl_r50_fpn_1x_coco
from gfl_jax.errors import UserError
from gfl_jax.training import config_checks, loss_terms
from tests import tiny


def test_every_field_of_the_recipe_has_a_rule():
  fields = dict(config_checks._flat(gfl_r50_fpn_1x_coco.get_config().to_dict()))
  assert fields.keys() == config_checks._FIELDS.keys()


def test_configs_as_they_are_and_as_json_keeps_them_can_run():
  for config in (demo_shapes.get_config(), bccd.get_config('pretrained')):
    config_checks.check_config(config)
    values = ml_collections.ConfigDict(config.to_dict()).to_json()
    stored = ml_collections.ConfigDict(json.loads(values))
    config_checks.check_config(stored)  # tuples are lists


def test_a_path_is_refused_where_scenes_are_drawn():
  config = demo_shapes.get_config()
  config.data.path = 'photos'
  with pytest.raises(UserError, match="'photos'.*coco_folder"):
    config_checks.check_config(config)


@pytest.mark.parametrize(
  'field, value',
  [
    ('seed', -1),
    ('seed', 2**32),
    ('parallel', 'threads'),
    ('data.name', 'coco'),
    ('batch_size', 0),
    ('batch_size', 2.5),
    ('accumulate', 0),
    ('accumulate', 3),  # does not divide the batch
    ('log_every_steps', 0),
    ('epochs', 0.0),
    ('eval_every_epochs', -1.0),
    ('epochs', float('nan')),
    ('ema_decay', 1.0),
    ('tensorboard', 1),
    ('data.canvas', (64,)),
    ('data.canvas', (64, 0)),
    ('data.canvas', (16, 16)),  # no image of short_side fits
    ('data.short_side', (64, 48)),
    ('data.zoom', (0.0, 1.0)),
    ('data.zoom', (2.0, 1.0)),
    ('data.flip', 1.5),
    ('data.std', (58.0, 0.0, 57.0)),
    ('data.mean', 'imagenet'),
    ('data.max_boxes', 0),
    ('data.max_boxes', 1000),  # more than positives
    ('assignment.top_k', 0),
    ('assignment.positive_iou', 0.3),  # below negative_iou
    ('class_loss.beta', 0.5),
    ('class_loss.weight', -1.0),
    ('class_loss.kind', 'focus'),
    ('score.weight', float('inf')),
    ('box_loss.weight', float('nan')),
    ('box_loss.min_weight_sum', 0.0),
    ('edge_loss.weight', -0.5),
    ('data.path', '~/coco'),
    ('data.data_dir', '~'),
    ('model.backbone.pretrained', '~/resnet50.pth'),
    ('box.kind', 'direct'),
    ('box.kind', 'dirac'),  # has no distribution for edge_loss
    ('box.scale', 0.0),
    ('class_loss.gamma', -1.0),
    ('box.stop', -1.0),
    ('box.num_bins', 1),
    ('model.num_classes', 0),
    ('model.neck.channels', 0),
    ('model.neck.num_levels', 9),
    ('model.backbone.norm_groups', 5),
    ('model.backbone.depth', 11),
    ('model.head.prior_probability', 1.0),
    ('model.remat', 'head'),
    ('optimizer.learning_rate', 0.0),
    ('optimizer.learning_rate', float('inf')),
    ('optimizer.learning_rate', float('nan')),
    ('optimizer.kind', 'adam'),
    ('schedule.decay_epochs', (11, 8)),
    ('decode.nms', 'soft'),
    ('decode.nms', 'iou_guided'),  # has no branch to go by
    ('decode.nms_iou', 2.0),
    ('decode.variance_voting', -0.1),
  ],
)
def test_values_that_cannot_run_are_named(field, value):
  config = tiny.config()
  *sections, name = field.split('.')
  part = config
  for section in sections:
    part = part[section]
  with part.ignore_type():
    part[name] = value
  with pytest.raises(UserError) as error:
    config_checks.check_config(config)
  assert name in str(error.value) and '\n' not in str(error.value)
  shown = value[0] if isinstance(value, tuple) else value
  assert f'{shown}' in str(error.value)


def test_fields_that_do_not_exist_or_are_missing_are_named():
  config = tiny.config()
  config.data.canvass = (64, 64)
  del config.box_loss.weight
  with pytest.raises(UserError) as error:
    config_checks.check_config(config)
  assert 'data.canvass, did you mean data.canvas?' in str(error.value)
  assert 'box_loss.weight is missing' in str(error.value)


def test_a_section_may_be_given_anew():
  config = tiny.config()
  config.box = dict(config.box.to_dict(), kind='dirac')
  config.edge_loss = dict(kind='none', weight=0.0)
  config_checks.check_config(config)


def test_the_canvas_holds_what_evaluation_resizes():
  config = tiny.config()
  config.data.update(short_side=(48, 80), max_long_side=80)
  with pytest.raises(UserError, match=r'data.canvas=\(64, 64\) cannot hold'):
    config_checks.check_config(config)


def test_scenes_to_draw_are_counted():
  config = demo_shapes.get_config()
  config.data.num_validation = 0
  with pytest.raises(UserError, match='data.num_validation=0'):
    config_checks.check_config(config)


def test_only_a_number_of_the_config_hides_where_an_error_came_from(monkeypatch):
  config = tiny.config()
  config.class_loss.update(kind='gaussian_focal', alpha=0.5)
  config.score.kind = 'none'
  with pytest.raises(UserError, match=r'class_loss\.alpha=0\.5 must be'):
    config_checks.check_config(config)

  def mistaken(logits, targets):
    raise ValueError('of a loss of my own')

  own = loss_terms.ClassLoss(mistaken, (), 'soft')
  monkeypatch.setitem(loss_terms.CLASS_LOSSES, 'own', own)
  config.class_loss.kind = 'own'
  with pytest.raises(ValueError, match='of a loss of my own') as error:
    config_checks.check_config(config)
  assert not isinstance(error.value, UserError)
