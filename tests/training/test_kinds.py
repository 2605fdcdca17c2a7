"""Every kind of score, class loss, box and edge loss, against plain NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gfl_jax.models import Predictions, canvas_points
from gfl_jax.ops import assignment
from gfl_jax.training import loss_terms, objective
from gfl_jax.training.targets import _heatmap, assign, make_targets
from tests import tiny

# score, class loss, its numbers, box, edge loss, weighting
CASES = {
  'gfl': ('joint', 'quality_focal', {}, 'general', 'distribution_focal', 'class_score'),
  'beta': ('joint', 'quality_focal', {'beta': 1.0}, 'general', 'none', 'iou'),
  'atss': ('centerness', 'focal', {}, 'dirac', 'none', 'centerness'),
  'iou': ('iou', 'focal', {'gamma': 1.0}, 'gaussian', 'gaussian_nll', 'centerness'),
  'plain': ('none', 'focal', {'alpha': 0.5}, 'gaussian', 'kl', 'uniform'),
  'centerness_guided': ('centerness_guided', 'focal', {}, 'dirac', 'none', 'iou'),
  'iou_guided': ('iou_guided', 'quality_focal', {}, 'dirac', 'none', 'uniform'),
  'varifocal': ('joint', 'varifocal', {'alpha': 0.75}, 'dirac', 'none', 'class_score'),
  'corner': (
    'iou',
    'gaussian_focal',
    {'alpha': 2.0, 'gamma': 4.0},
    'general',
    'none',
    'centerness',
  ),
  'fcos': ('centerness', 'focal', {}, 'dirac', 'none', 'centerness'),
  'max_iou': ('none', 'focal', {}, 'dirac', 'none', 'uniform'),
}
# The others have ATSS, points at the corners of their cells, and GIoU.
CHANGES = {
  'fcos': {
    'assignment.kind': 'fcos',
    'assignment.regress_range': 4.0,
    'assignment.center_radius': 1.5,
    'points.offset': 0.5,
    'box_loss.kind': 'iou',
  },
  'max_iou': {
    'assignment.kind': 'max_iou',
    'assignment.positive_iou': 0.45,
    'assignment.negative_iou': 0.35,
  },
}
# The rule of a case, with its numbers by name.
RULES = {
  'gfl': functools.partial(assignment.atss, top_k=9),
  'fcos': functools.partial(assignment.fcos, regress_range=4.0, center_radius=1.5),
  'max_iou': functools.partial(
    assignment.max_iou, positive_iou=0.45, negative_iou=0.35
  ),
}
NUM_OUTPUTS = {'dirac': 1, 'gaussian': 2, 'general': 9}


def config_of(case):
  score, class_loss, numbers, box, edge, weighting = CASES[case]
  c = tiny.config()
  c.score.update(kind=score, weight=0.7)
  c.class_loss.update(kind=class_loss, weight=1.3, **numbers)
  c.box.kind = box
  c.edge_loss.update(kind=edge, weight=0.4)
  c.box_loss.update(weighting=weighting, weight=1.7)
  c.update_from_flattened_dict(CHANGES.get(case, {}))
  return c


def predictions_of(config, *, scale=1.0, seed=0):
  rng = np.random.default_rng(seed)
  shape = (8, len(canvas_points(config, (64, 64)).centers))
  normal = lambda *s: jnp.asarray(scale * rng.normal(size=s), jnp.float32)
  has_branch = config.score.kind in ('centerness', 'iou')
  return Predictions(
    normal(*shape, 3),
    normal(*shape, 4, NUM_OUTPUTS[config.box.kind]),
    normal(*shape, 1) if has_branch else None,
  )


@functools.cache
def loss_of(case):
  """Jitted ((loss, scalars), gradient) of (predictions, batch)."""
  config = config_of(case)
  anchors = canvas_points(config, (64, 64))
  loss = lambda *parts: objective.detection_loss(*parts, anchors, config)
  return jax.jit(jax.value_and_grad(loss, has_aux=True))


# --- the same in NumPy, float64, one anchor at a time -------------------------------

sigmoid = lambda x: 1 / (1 + np.exp(-x))
cross_entropy = lambda x, y: -y * np.log(sigmoid(x)) - (1 - y) * np.log(sigmoid(-x))


def class_entry(config, logit, target):
  c, p = config.class_loss, sigmoid(logit)
  if c.kind == 'focal':
    side = (c.alpha, 1 - p) if target == 1 else (1 - c.alpha, p)
    return side[0] * side[1] ** c.gamma * cross_entropy(logit, target)
  if c.kind == 'quality_focal':
    return abs(target - p) ** c.beta * cross_entropy(logit, target)
  if c.kind == 'varifocal':
    weight = target if target > 0 else c.alpha * p**c.gamma
    return weight * cross_entropy(logit, target)
  if target == 1:
    return -((1 - p) ** c.alpha) * np.log(p)
  return -((1 - target) ** c.gamma) * p**c.alpha * np.log(1 - p)


def side_of(config, outputs):
  """Mean and standard deviation of a side, and its probabilities."""
  if config.box.kind == 'general':
    p = np.exp(outputs) / np.exp(outputs).sum()
    values = np.linspace(config.box.start, config.box.stop, config.box.num_bins)
    return p @ values, None, p
  return config.box.scale * np.exp(outputs[0]), np.exp(outputs[-1] / 2), None


def edge_entry(config, outputs, target):
  mean, std, p = side_of(config, outputs)
  kind, error = config.edge_loss.kind, abs(mean - target)
  if kind == 'distribution_focal':
    width = (config.box.stop - config.box.start) / (config.box.num_bins - 1)
    at = (min(target, config.box.stop - 0.1 * width) - config.box.start) / width
    low = int(np.floor(at))
    return -(low + 1 - at) * np.log(p[low]) - (at - low) * np.log(p[low + 1])
  if kind == 'gaussian_nll':
    return error**2 / (2 * std**2) + np.log(std)
  if kind == 'kl':
    smooth = error**2 / 2 if error <= 1 else error - 0.5
    return smooth / std**2 + np.log(std)
  return 0.0


def overlap(a, b):
  """IoU and GIoU of two boxes."""
  area = lambda box: max(box[2] - box[0], 0) * max(box[3] - box[1], 0)
  both = area([*np.maximum(a[:2], b[:2]), *np.minimum(a[2:], b[2:])])
  union = area(a) + area(b) - both
  hull = area([*np.minimum(a[:2], b[:2]), *np.maximum(a[2:], b[2:])])
  return both / union, both / union - (hull - union) / hull


def expected_terms(config, predictions, batch, matched, anchors):
  logits, outputs, quality_logits = (
    None if x is None else np.asarray(x, np.float64) for x in predictions
  )
  sums = dict(class_=0.0, quality=0.0, box=0.0, edge=0.0, weight=0.0, count=0)
  heatmap = None
  if config.class_loss.kind == 'gaussian_focal':
    heatmap = np.asarray(_heatmap(matched, batch, anchors, 3, config))
  for i in range(len(matched)):
    positives = 0
    for a in np.flatnonzero(matched[i] != assignment.IGNORED):
      targets, weight = np.zeros(3), 1.0
      label = None
      if matched[i, a] >= 0:
        positives += 1
        g, label = matched[i, a], batch['labels'][i, matched[i, a]]
        true, stride = batch['boxes'][i, g] / anchors.strides[a], anchors.strides[a]
        x, y = anchors.centers[a] / stride
        t = np.array([x - true[0], y - true[1], true[2] - x, true[3] - y])
        d = np.array([side_of(config, o)[0] for o in outputs[i, a]])
        iou, giou = overlap(np.array([x - d[0], y - d[1], x + d[2], y + d[3]]), true)
        centerness = np.sqrt(
          min(t[0], t[2]) / max(t[0], t[2]) * min(t[1], t[3]) / max(t[1], t[3])
        )
        quality = centerness if 'centerness' in config.score.kind else iou
        targets[label] = iou if config.score.kind == 'joint' else 1.0
        weight = quality if 'guided' in config.score.kind else 1.0
        w = {
          'class_score': sigmoid(logits[i, a].max()),
          'centerness': centerness,
          'iou': iou,
          'uniform': 1.0,
        }[config.box_loss.weighting]
        edges = [
          edge_entry(config, o, s) for o, s in zip(outputs[i, a], t, strict=True)
        ]
        sums['weight'] += w
        sums['box'] += w * (1 - (iou if config.box_loss.kind == 'iou' else giou))
        sums['edge'] += w * np.mean(edges)
        if quality_logits is not None:
          sums['quality'] += cross_entropy(quality_logits[i, a, 0], quality)
      if heatmap is not None:
        targets = heatmap[i, a]
      for c in range(3):
        entry = class_entry(config, logits[i, a, c], targets[c])
        sums['class_'] += entry * (weight if c == label else 1.0)
    sums['count'] += max(positives if heatmap is None else (heatmap[i] == 1).sum(), 1)
  weight_sum = max(sums['weight'], config.box_loss.min_weight_sum)
  return {
    'loss_class': 1.3 * sums['class_'] / sums['count'],
    'loss_quality': 0.7 * sums['quality'] / sums['count'],
    'loss_box': 1.7 * sums['box'] / weight_sum,
    'loss_edge': 0.4 * sums['edge'] / weight_sum,
  }


@pytest.mark.parametrize('case', RULES)
def test_anchors_are_matched_by_the_rule_that_the_config_names(case):
  config, batch = config_of(case), tiny.batch()
  points = canvas_points(config, (64, 64))
  matched, _ = jax.jit(lambda batch: assign(batch, points, config))(batch)
  image = batch['boxes'][4], batch['valid'][4]
  rules = {
    name: jax.jit(functools.partial(rule, points=points))(*image).matched
    for name, rule in RULES.items()
  }
  np.testing.assert_array_equal(matched[4], rules.pop(case))
  assert all(np.any(matched[4] != other) for other in rules.values())


@pytest.mark.parametrize('case', CASES)
def test_each_term_is_that_of_plain_numpy(case):
  config, batch = config_of(case), tiny.batch()
  batch['image_sizes'][1] = (32, 64)  # some anchors are ignored
  anchors, predictions = canvas_points(config, (64, 64)), predictions_of(config)
  matched, _ = assign(batch, anchors, config)
  matched = np.asarray(matched)
  assert {-2, -1, 0}.issubset(matched.ravel())
  (loss, scalars), _ = loss_of(case)(predictions, batch)
  expected = expected_terms(config, predictions, batch, matched, anchors)
  if predictions.quality_logits is None:
    assert 'loss_quality' not in scalars and expected.pop('loss_quality') == 0
  for name, value in expected.items():
    np.testing.assert_allclose(scalars[name], value, rtol=1e-5, atol=1e-7, err_msg=name)
  np.testing.assert_allclose(loss, sum(expected.values()), rtol=1e-5)


@pytest.mark.parametrize('case', CASES)
def test_the_gradient_is_the_slope_of_the_loss(case):
  # Along one random direction of the class and quality logits: the box logits also
  # move labels and weights, through which no gradient flows.
  config, batch = config_of(case), tiny.batch()
  predictions = predictions_of(config)
  _, gradient = loss_of(case)(predictions, batch)
  config.box_loss.weight = config.edge_loss.weight = 0.0
  anchors = canvas_points(config, (64, 64))

  with jax.enable_x64(True):
    exact = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), predictions)
    way = predictions_of(config, seed=1)._replace(box_logits=0 * exact.box_logits)
    loss = lambda step: objective.detection_loss(
      jax.tree.map(lambda x, d: x + step * d, exact, way), batch, anchors, config
    )[0]
    slope = (loss(1e-5) - loss(-1e-5)) / 2e-5
    slope, way = float(slope), jax.device_get(way)
  along = sum(
    np.sum(np.asarray(g, np.float64) * d)
    for g, d in zip(jax.tree.leaves(gradient), jax.tree.leaves(way), strict=True)
  )
  np.testing.assert_allclose(along, slope, rtol=2e-4)


@pytest.mark.parametrize('case', CASES)
def test_no_gradient_flows_through_labels_and_weights(case):
  config, batch = config_of(case), tiny.batch()
  config.box_loss.weight = config.edge_loss.weight = 0.0
  anchors = canvas_points(config, (64, 64))
  loss = lambda p: objective.detection_loss(p, batch, anchors, config)[0]
  gradient = jax.grad(loss)(predictions_of(config))
  assert not np.any(gradient.box_logits)
  assert np.any(gradient.class_logits)


@pytest.mark.parametrize('case', ['atss', 'iou', 'plain', 'corner'])
def test_a_batch_without_boxes_trains_the_classes_alone(case):
  config, batch = config_of(case), tiny.batch()
  batch['valid'][:] = False
  (_, scalars), gradient = loss_of(case)(predictions_of(config), batch)
  assert scalars['loss_class'] > 0
  assert scalars['loss_box'] == scalars['loss_edge'] == 0
  assert scalars.get('loss_quality', 0) == 0
  assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradient))
  assert not np.any(gradient.box_logits)


@pytest.mark.parametrize('case', CASES)
def test_extreme_logits_stay_finite(case):
  config, batch = config_of(case), tiny.batch()
  (loss, scalars), gradient = loss_of(case)(predictions_of(config, scale=100), batch)
  assert np.isfinite(loss) and all(np.isfinite(x) for x in scalars.values())
  assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize('case', ['iou', 'corner', 'iou_guided'])
def test_parts_of_a_batch_add_up_to_the_whole(case):
  config, batch = config_of(case), tiny.batch()
  anchors, predictions = canvas_points(config, (64, 64)), predictions_of(config)
  (loss, _), _ = loss_of(case)(predictions, batch)
  normalizers = objective.local_normalizers(predictions, batch, anchors, config)
  part = jax.jit(
    lambda *part: objective.loss_and_sums(
      *part, anchors, config, normalizers=normalizers
    )[0]
  )
  half = lambda tree, i: jax.tree.map(lambda x: x[4 * i : 4 * i + 4], tree)
  parts = [part(half(predictions, i), half(batch, i)) for i in range(2)]
  np.testing.assert_allclose(sum(parts), loss, rtol=1e-5)


def test_labels_of_positives_have_their_means_and_deviations():
  config, batch = config_of('atss'), tiny.batch()
  predictions, anchors = predictions_of(config), canvas_points(config, (64, 64))
  (_, scalars), _ = loss_of('atss')(predictions, batch)
  match = make_targets(predictions, batch, anchors, config)
  for name, label in match.qualities.items():
    used = np.asarray(label)[np.asarray(match.positives.used)]
    np.testing.assert_allclose(scalars[f'positive_{name}'], used.mean(), rtol=1e-5)
    deviation = scalars[f'positive_{name}_std']
    np.testing.assert_allclose(deviation, used.std(), rtol=1e-4)


@pytest.mark.parametrize(
  'changes, message',
  [
    ({'class_loss': 'focal'}, "score.kind='joint': this score needs a class loss with"),
    ({'class_loss': 'gaussian_focal'}, "one of \\['quality_focal', 'varifocal'\\]"),
    (
      {'class_loss': 'gaussian_focal', 'score': 'iou_guided'},
      'no class loss of single positives to weight',
    ),
    ({'box': 'dirac'}, 'this loss needs a box of kind general'),
    ({'edge_loss': 'kl'}, 'this loss needs a box of kind gaussian'),
    ({'score': 'iou_branch'}, "score.kind='iou_branch' is not one of"),
  ],
)
def test_choices_that_do_not_fit_are_an_error(changes, message):
  config = tiny.config()
  for section, kind in changes.items():
    config[section].kind = kind
  config.class_loss.update(alpha=2.0, gamma=4.0)  # a heatmap's exponents
  with pytest.raises(ValueError, match=message):
    loss_terms.check_choices(config)


def test_numbers_out_of_range_are_an_error():
  config = tiny.config()
  config.class_loss.beta = 0.5
  with pytest.raises(ValueError, match='beta=0.5 must be 0 or at least 1'):
    loss_terms.check_choices(config)
  config = config_of('fcos')
  config.assignment.center_radius = -1.5
  with pytest.raises(ValueError, match='center_radius=-1.5 at least 0'):
    loss_terms.check_choices(config)
  config = config_of('max_iou')
  config.assignment.negative_iou = 0.6
  with pytest.raises(ValueError, match='negative_iou=0.6'):
    loss_terms.check_choices(config)
  config = tiny.config()
  config.box.num_bins = 1
  with pytest.raises(ValueError, match='num_bins=1: a grid needs at least 2 bins'):
    loss_terms.check_choices(config)
  config = config_of('corner')
  config.class_loss.min_overlap = 1.5
  with pytest.raises(ValueError, match=r'min_overlap=1\.5'):
    loss_terms.check_choices(config)
  config = tiny.config()
  config.box_loss.weighting = 'score'
  with pytest.raises(ValueError, match="box_loss.weighting='score' is not one of"):
    loss_terms.check_choices(config)
