import jax
import numpy as np
import pytest

from gfl_jax.deploy import backbones, weights
from tests import golden_weights
from tests.deploy import test_weights


def test_a_pretrained_backbone_replaces_the_drawn_one_alone(tmp_path):
  config = test_weights.model_config()
  config.backbone.pretrained = str(tmp_path / 'resnet18.npz')
  np.savez(config.backbone.pretrained, **test_weights.torchvision_state_dict())
  before = jax.tree.map(np.zeros_like, golden_weights.variables(test_weights.NAME))
  after = backbones.load_backbone(before, config.backbone)
  expected = weights.from_torchvision_resnet(test_weights.torchvision_state_dict(), 18)
  for collection, tree in after.items():
    jax.tree.map(np.testing.assert_array_equal, tree['backbone'], expected[collection])
  assert not any(np.any(leaf) for leaf in jax.tree.leaves(after['params']['head']))
  assert jax.tree.structure(after) == jax.tree.structure(before)


def test_a_backbone_that_torchvision_has_not_is_refused():
  config = test_weights.model_config()
  config.backbone.update(pretrained='resnet18.npz', norm='group_norm')
  with pytest.raises(ValueError, match="needs norm='frozen_batch_norm'"):
    backbones.load_backbone({}, config.backbone)
  config.backbone.update(norm='frozen_batch_norm', widths=(8, 16, 32, 64))
  with pytest.raises(ValueError, match=r'needs widths=\(64, .*, not \(8, 16, 32, 64\)'):
    backbones.load_backbone({}, config.backbone)
