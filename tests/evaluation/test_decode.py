import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict

from gfl_jax.evaluation.decode import decode_detections, strongest_candidates
from gfl_jax.models import Predictions
from gfl_jax.ops.points import level_slices, make_points
from tests import golden
from tests.ops.test_distributions import assert_products_are_exact

# threshold, candidates per level, NMS IoU, detections kept, smallest side
VARIANTS = {
  'default': (0.05, 1000, 0.6, 100, 0.0),
  'small': (0.12, 40, 0.4, 12, 0.0),
  'minsize': (0.05, 1000, 0.6, 100, 40.0),
  'nocap': (0.05, 1000, 0.6, 5000, 0.0),
  'none': (0.999, 1000, 0.6, 100, 0.0),
  'rescaled': (0.05, 1000, 0.6, 100, 0.0),
}
TINY = make_points((64, 64), (8, 16))
NUM_ANCHORS = len(TINY.strides)


def make_config(threshold, candidates, nms_iou, kept, min_size, *, num_bins=17):
  return ConfigDict({
    'box': {
      'kind': 'general', 'start': 0.0, 'stop': num_bins - 1.0, 'num_bins': num_bins,
      'scale': 2.0,
    },
    'score': {'kind': 'joint'},
    'decode': {
      'score_threshold': threshold,
      'candidates_per_level': candidates,
      'nms': 'greedy',
      'nms_iou': nms_iou,
      'max_detections': kept,
      'min_size': min_size,
      'variance_voting': 0.0,
      'uncertainty_penalty': False,
    },
  })  # fmt: skip


@functools.cache
def golden_case():
  arrays = golden.load('head')
  flat = lambda name: np.concatenate(
    [
      arrays[f'{name}/{i}'].reshape(2, arrays[f'{name}/{i}'].shape[1], -1)
      for i in range(5)
    ],
    axis=-1,
  ).transpose(0, 2, 1)
  box_logits = flat('reg').reshape(2, -1, 4, 17)
  predictions = Predictions(jnp.array(flat('cls')), jnp.array(box_logits), None)
  points = make_points(arrays['meta/batch_shape'].tolist(), (8, 16, 32, 64, 128))
  return arrays, predictions, points


@functools.cache
def golden_decoder(settings):
  points, config = golden_case()[2], make_config(*settings)
  return jax.jit(
    lambda p, sizes, scales: decode_detections(
      p, points, sizes, config, scale_factors=scales
    )
  )


def decode_golden(settings, scale_factors=((1.0, 1.0), (1.0, 1.0))):
  arrays, predictions, _ = golden_case()
  sizes, scales = arrays['meta/img_shape'], np.array(scale_factors, np.float32)
  return jax.device_get(golden_decoder(settings)(predictions, sizes, scales))


def assert_detections_equal(found, image, arrays, prefix, *, ordered):
  count = len(arrays[f'{prefix}/scores'])
  assert found.valid[image].tolist() == [i < count for i in range(len(found.valid[0]))]
  got = np.column_stack([found.scores[image], found.classes[image], found.boxes[image]])
  want = np.column_stack(
    [arrays[f'{prefix}/{k}'] for k in ('scores', 'labels', 'boxes')]
  )
  got = got[:count]
  if not ordered:
    order = lambda rows: rows[np.lexsort(rows.round(3).T)]
    got, want = order(got), order(want)
  np.testing.assert_array_equal(got[:, 1], want[:, 1])
  np.testing.assert_allclose(got[:, 0], want[:, 0], rtol=1e-6)
  np.testing.assert_allclose(got[:, 2:], want[:, 2:], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize('variant', VARIANTS)
def test_final_detections_are_mmdets(variant):
  arrays, _, _ = golden_case()
  scales = (arrays['meta/scale_factor_wh'],) if variant == 'rescaled' else ()
  found = decode_golden(VARIANTS[variant], *scales)
  for image in range(2):
    prefix = f'det/{variant}/img{image}/final'
    # Scores that tie may come in either order, but here the order is mmdet's too.
    assert_detections_equal(found, image, arrays, prefix, ordered=True)


@pytest.mark.parametrize('variant', ['default', 'small', 'minsize'])
def test_candidates_before_suppression_are_mmdets(variant):
  arrays, _, _ = golden_case()
  threshold, candidates, _, _, min_size = VARIANTS[variant]
  found = decode_golden((threshold, candidates, 1.0, 400, min_size))  # no suppression
  for image in range(2):
    prefix = f'det/{variant}/img{image}/pre'
    assert_detections_equal(found, image, arrays, prefix, ordered=False)


def reference(class_logits, box_logits, image_size, config):
  """All pairs of a level sorted at once, then a plain NMS loop, in float64."""
  c = config.decode
  scores = 1 / (1 + np.exp(-class_logits.astype(np.float64)))
  bins = np.exp(box_logits - box_logits.max(-1, keepdims=True)).astype(np.float64)
  bins /= bins.sum(-1, keepdims=True)
  distances = (bins * np.arange(bins.shape[-1])).sum(-1) * TINY.strides[:, None]
  boxes = np.concatenate(
    [TINY.centers - distances[:, :2], TINY.centers + distances[:, 2:]], axis=-1
  )
  boxes = np.clip(boxes, 0, np.tile(image_size[::-1], 2))
  pool = []
  for part in level_slices(TINY):
    pairs = [
      (scores[a, k], a, k)
      for a in range(part.start, part.stop)
      for k in range(scores.shape[1])
      if scores[a, k] > c.score_threshold
    ]
    pool += sorted(pairs, reverse=True)[: c.candidates_per_level]
  kept = []
  for score, a, k in sorted(pool, reverse=True):
    x1, y1, x2, y2 = boxes[a]
    if min(x2 - x1, y2 - y1) <= c.min_size:
      continue
    if all(k != other or iou(boxes[a], boxes[b]) <= c.nms_iou for _, b, other in kept):
      kept.append((score, a, k))
  return kept[: c.max_detections]


def iou(a, b):
  sides = np.clip(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0, None)
  area = lambda box: np.prod(box[2:] - box[:2])
  return sides.prod() / (area(a) + area(b) - sides.prod())


TINY_CONFIG = make_config(0.3, 7, 0.5, 10, 2.0, num_bins=5)
decode_tiny = jax.jit(
  lambda p, sizes, scales=None: decode_detections(
    p, TINY, sizes, TINY_CONFIG, scale_factors=scales
  )
)


def tiny_predictions(seed, *, batch=2, scale=1.0):
  rng = np.random.default_rng(seed)
  # Evenly spaced in random order: no two scores are so close that rounding ranks them.
  logits = rng.permuted(np.linspace(-4, 4, batch * NUM_ANCHORS * 3, dtype=np.float32))
  class_logits = scale * logits.reshape(batch, NUM_ANCHORS, 3)
  box_logits = rng.normal(0, scale, (batch, NUM_ANCHORS, 4, 5)).astype(np.float32)
  return Predictions(jnp.array(class_logits), jnp.array(box_logits), None)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(8, 64), st.integers(8, 64))
def test_equals_a_plain_program(seed, height, width):
  predictions = tiny_predictions(seed)
  sizes = np.array([[height, width], [64, 64]], np.int32)
  found = jax.device_get(decode_tiny(predictions, sizes))
  for i, size in enumerate(sizes):
    arrays = (np.asarray(predictions.class_logits[i]), predictions.box_logits[i])
    want = reference(arrays[0], np.asarray(arrays[1]), size, TINY_CONFIG)
    n = len(want)
    assert found.valid[i].sum() == n
    np.testing.assert_allclose(found.scores[i, :n], [w[0] for w in want], rtol=1e-5)
    assert found.anchor_index[i, :n].tolist() == [w[1] for w in want]
    assert found.classes[i, :n].tolist() == [w[2] for w in want]


def test_edge_std_is_that_of_the_distribution_in_pixels_of_the_boxes():
  class_logits = np.full((1, NUM_ANCHORS, 3), -9.0, np.float32)
  class_logits[0, 27, 1] = 3.0  # cell (3, 3) of stride 8
  box_logits = np.full((1, NUM_ANCHORS, 4, 5), -40.0, np.float32)
  box_logits[..., 1] = 0.0  # one stride, for sure
  box_logits[:, :, 2, [1, 3]] = 5.0  # right: one or three strides
  predictions = Predictions(jnp.array(class_logits), jnp.array(box_logits), None)
  size, scales = np.array([[64, 64]], np.int32), np.array([[2.0, 0.5]], np.float32)
  found = decode_tiny(predictions, size, scales)
  np.testing.assert_allclose(found.boxes[0, 0], [8, 32, 20, 64], atol=1e-4)
  np.testing.assert_allclose(found.edge_std[0, 0], [0, 0, 4, 0], atol=1e-4)
  assert (found.anchor_index[0, 0], found.classes[0, 0]) == (27, 1)
  assert found.valid[0].tolist() == [True] + [False] * 9


def test_quality_scales_the_score_after_the_threshold():
  class_logits = np.full((1, NUM_ANCHORS, 3), -9.0, np.float32)
  class_logits[0, [9, 54], 0] = [1.0, 0.0]
  quality_logits = np.zeros((1, NUM_ANCHORS, 1), np.float32)
  quality_logits[0, 9] = -2.0
  box_logits = tiny_predictions(0, batch=1).box_logits
  predictions = Predictions(
    jnp.array(class_logits), box_logits, jnp.array(quality_logits)
  )
  found = decode_tiny(predictions, np.array([[64, 64]], np.int32))
  sigmoid = lambda x: 1 / (1 + np.exp(-x))
  want = [0.5 * 0.5, sigmoid(1.0) * sigmoid(-2.0)]
  np.testing.assert_allclose(found.scores[0, :2], want, rtol=1e-6)
  assert found.anchor_index[0, :2].tolist() == [54, 9]


def test_an_image_is_decoded_alike_alone_and_in_a_batch():
  predictions = tiny_predictions(1)
  sizes = np.array([[64, 64], [40, 56]], np.int32)
  both = decode_tiny(predictions, sizes)
  turned = decode_tiny(jax.tree.map(lambda x: x[::-1], predictions), sizes[::-1])
  jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b[::-1]), both, turned)


def test_a_padding_image_has_no_detection():
  found = decode_tiny(tiny_predictions(2), np.array([[64, 64], [0, 0]], np.int32))
  assert found.valid[0].any()
  for values in found:
    assert not np.asarray(values[1]).any()


def test_saturated_logits_stay_finite():
  predictions = tiny_predictions(3, scale=100.0)
  found = decode_tiny(predictions, np.array([[64, 64], [64, 64]], np.int32))
  np.testing.assert_array_equal(found.scores, found.valid)  # 1 or unused
  assert found.valid.any(-1).all()
  for values in found:
    assert np.isfinite(np.asarray(values)).all()


def test_products_are_exact_on_devices_whose_default_is_not():
  args = (tiny_predictions(0), np.array([[64, 64], [64, 64]], np.int32))
  assert_products_are_exact(decode_tiny.lower(*args).as_text())


def test_rejects_points_of_another_canvas():
  with pytest.raises(ValueError, match='80 anchors, points 20'):
    decode_detections(
      tiny_predictions(0),
      make_points((32, 32), (8, 16)),
      np.array([[32, 32], [32, 32]], np.int32),
      TINY_CONFIG,
    )


def changed(**changes):
  """TINY_CONFIG with some values changed; 'a__b' is a.b."""
  config = ConfigDict(TINY_CONFIG.to_dict())
  config.update_from_flattened_dict(
    {key.replace('__', '.'): value for key, value in changes.items()}
  )
  return config


@pytest.mark.parametrize(
  'changes, message',
  [
    ({'box__kind': 'circle'}, "box.kind='circle' is not one of .*'dirac', 'gauss"),
    ({'decode__nms': 'soft'}, r"decode.nms='soft' is not one of \['greedy', 'iou_gui"),
    ({'decode__nms': 'iou_guided'}, "decode.nms='iou_g.*score.kind='joint'.*greedy"),
    ({'decode__variance_voting': -0.1}, 'decode.variance_voting=-0.1'),
    ({'box__kind': 'dirac', 'decode__variance_voting': 0.1}, "'dirac' has no spread"),
    (
      {'box__kind': 'dirac', 'decode__uncertainty_penalty': True},
      "'dirac' has no spread.*decode.uncertainty_penalty=True",
    ),
  ],
)
def test_rejects_what_the_score_or_the_box_does_not_have(changes, message):
  sizes = np.array([[64, 64], [64, 64]], np.int32)
  with pytest.raises(ValueError, match=message):
    decode_detections(tiny_predictions(0), TINY, sizes, changed(**changes))


WHOLE = np.array([[64, 64]], np.int32)


def decode(predictions, config):
  run = lambda p: decode_detections(p, TINY, WHOLE, config)
  return jax.jit(run)(predictions)


def scene(pairs, outputs, quality=None):
  """One image: {(anchor, class): class score}, [A, 4, n] outputs, {anchor: quality}."""
  logit = lambda p: np.log(p / (1 - p))
  class_logits = np.full((1, NUM_ANCHORS, 3), -9.0, np.float32)
  for place, score in pairs.items():
    class_logits[0][place] = logit(score)
  quality_logits = None
  if quality is not None:
    quality_logits = np.zeros((1, NUM_ANCHORS, 1), np.float32)
    for anchor, value in quality.items():
      quality_logits[0, anchor] = logit(value)
    quality_logits = jnp.array(quality_logits)
  outputs = jnp.asarray(outputs, jnp.float32)[None]
  return Predictions(jnp.array(class_logits), outputs, quality_logits)


def gaussian_outputs(distances=2.0, std=0.5):
  """The same for all anchors, in strides: [A, 4, 2]."""
  sides = np.ones((NUM_ANCHORS, 4))
  return np.stack([np.log(distances / 2 * sides), 2 * np.log(std * sides)], -1)


def test_dirac_sides_lie_at_the_exponential_and_have_no_spread():
  outputs = np.zeros((NUM_ANCHORS, 4, 1))
  outputs[27] = np.log([[0.5], [1.0], [1.5], [0.25]])  # box.scale is 2
  predictions = scene({(27, 1): 0.9}, outputs)  # cell (3, 3) of stride 8
  found = decode(predictions, changed(box__kind='dirac'))
  np.testing.assert_allclose(found.boxes[0, 0], [16, 8, 48, 28], rtol=1e-5)
  assert not np.asarray(found.edge_std).any()


def test_gaussian_sides_have_their_mean_and_deviation():
  outputs = gaussian_outputs()
  outputs[27, :, 1] = 2 * np.log([0.25, 0.5, 1.0, 2.0])
  predictions = scene({(27, 1): 0.9}, outputs)
  found = decode(predictions, changed(box__kind='gaussian'))
  np.testing.assert_allclose(found.boxes[0, 0], [8, 8, 40, 40], rtol=1e-5)
  np.testing.assert_allclose(found.edge_std[0, 0], [2, 4, 8, 16], rtol=1e-5)


def test_uncertainty_costs_its_mean_in_strides_before_suppression():
  outputs = gaussian_outputs()
  outputs[27, :, 1] = 2 * np.log([0.1, 0.2, 0.5, 3.0])  # the last counts as one stride
  outputs[28, :, 1] = 2 * np.log(0.1)
  outputs[54, :, 1] = 2 * np.log(1.5)
  pairs = {(27, 1): 0.9, (28, 1): 0.8, (54, 1): 0.95}
  config = changed(
    box__kind='gaussian', decode__uncertainty_penalty=True, decode__nms_iou=0.3
  )
  found = decode(scene(pairs, outputs), config)
  # The neighbor at 28 covers 27 now; the box at 54 is nowhere sure.
  assert found.valid[0].tolist() == [True] + [False] * 9
  assert found.anchor_index[0, 0] == 28
  np.testing.assert_allclose(found.scores[0, 0], 0.8 * 0.9, rtol=1e-5)
  alone = decode(scene({(27, 1): 0.9}, outputs), config)
  np.testing.assert_allclose(alone.scores[0, 0], 0.9 * (1 - 1.8 / 4), rtol=1e-5)


def test_iou_guided_suppression_ranks_by_quality_and_passes_the_class_score_on():
  pairs = {(27, 1): 0.9, (28, 1): 0.6, (28, 2): 0.4, (0, 0): 0.7}
  predictions = scene(pairs, gaussian_outputs(), {27: 0.3, 28: 0.8, 0: 0.1})
  config = changed(
    box__kind='gaussian',
    score__kind='iou',
    decode__nms='iou_guided',
    decode__nms_iou=0.3,
  )
  found = decode(predictions, config)
  assert found.anchor_index[0, :3].tolist() == [28, 0, 28]
  assert found.classes[0, :3].tolist() == [1, 0, 2]
  # Not multiplied by the quality, and the first has that of the box it suppressed.
  np.testing.assert_allclose(found.scores[0, :3], [0.9, 0.7, 0.4], rtol=1e-5)
  assert found.valid[0].tolist() == [True] * 3 + [False] * 7


def test_voting_moves_a_box_towards_what_is_sure_around_it():
  outputs = gaussian_outputs()
  outputs[28, :, 1] = 2 * np.log(0.25)
  pairs = {(27, 1): 0.9, (28, 1): 0.6, (28, 2): 0.4}
  sigma_t = 0.2
  config = changed(
    box__kind='gaussian', decode__variance_voting=sigma_t, decode__nms_iou=0.3
  )
  found = decode(scene(pairs, outputs), config)
  first, second = np.array([8.0, 8, 40, 40]), np.array([16.0, 8, 48, 40])
  weights = np.array([1.0 / 4**2, np.exp(-((1 - 0.6) ** 2) / sigma_t) / 2**2])
  want = (weights[0] * first + weights[1] * second) / weights.sum()
  np.testing.assert_allclose(found.boxes[0, 0], want, rtol=1e-5)
  np.testing.assert_allclose(found.boxes[0, 1], second, rtol=1e-5)  # another class
  np.testing.assert_allclose(found.scores[0, :2], [0.9, 0.4], rtol=1e-5)


@pytest.mark.parametrize('kind, n', [('dirac', 1), ('gaussian', 2), ('general', 5)])
@pytest.mark.parametrize('options', ['greedy', 'iou_guided', 'uncertain'])
def test_saturated_outputs_stay_finite_in_every_representation(kind, n, options):
  if kind == 'dirac' and options == 'uncertain':
    return
  rng = np.random.default_rng(0)
  draw = lambda *shape: jnp.array(rng.choice([-100.0, 100.0], shape), jnp.float32)
  predictions = Predictions(
    draw(1, NUM_ANCHORS, 3), draw(1, NUM_ANCHORS, 4, n), draw(1, NUM_ANCHORS, 1)
  )
  changes = {'box__kind': kind, 'score__kind': 'iou'}
  if options == 'iou_guided':
    changes |= {'decode__nms': 'iou_guided'}
  if options == 'uncertain':
    changes |= {'decode__variance_voting': 0.01, 'decode__uncertainty_penalty': True}
  found = decode(predictions, changed(**changes))
  for values in found:
    assert np.isfinite(np.asarray(values)).all()


def test_strongest_candidates_are_the_best_class_of_the_best_anchors():
  predictions = tiny_predictions(4)
  quality = jnp.linspace(-3, 3, 2 * NUM_ANCHORS).reshape(2, NUM_ANCHORS, 1)
  predictions = predictions._replace(quality_logits=quality)
  sizes, scales = np.array([[64, 64]] * 2), np.array([[2.0, 0.5]] * 2, np.float32)
  config = changed(score__kind='iou', decode__score_threshold=0.99)
  found = jax.jit(
    lambda p: strongest_candidates(
      p, TINY, sizes, config, count=20, scale_factors=scales
    )
  )(predictions)
  sigmoid = lambda x: 1 / (1 + np.exp(-np.asarray(x, np.float64)))
  scores = sigmoid(predictions.class_logits)
  for i in range(2):
    order = np.argsort(-scores[i].max(-1))[:20]
    assert found.anchor_index[i].tolist() == order.tolist()
    assert found.classes[i].tolist() == scores[i, order].argmax(-1).tolist()
    want = scores[i, order].max(-1)
    np.testing.assert_allclose(found.class_scores[i], want, rtol=1e-5)
    np.testing.assert_allclose(found.quality[i], sigmoid(quality[i, order, 0]), 1e-5)
    np.testing.assert_allclose(found.scores[i], found.quality[i] * want, rtol=1e-5)
  # The same boxes as those of the detections, where an anchor gives both.
  loose = changed(score__kind='iou')
  kept = jax.jit(
    lambda p: decode_detections(p, TINY, sizes, loose, scale_factors=scales)
  )(predictions)
  shared = 0
  for i in range(2):
    for slot, anchor in enumerate(kept.anchor_index[i].tolist()):
      at = found.anchor_index[i].tolist()
      if kept.valid[i, slot] and anchor in at:
        box = found.boxes[i, at.index(anchor)]
        np.testing.assert_allclose(kept.boxes[i, slot], box, rtol=1e-5)
        shared += 1
  assert shared > 3
  few = strongest_candidates(predictions, TINY, sizes, config, count=500)
  assert few.scores.shape == (2, NUM_ANCHORS)


def test_without_a_branch_there_is_no_quality():
  sizes = np.array([[64, 64]] * 2)
  predictions = tiny_predictions(4)
  with jax.debug_nans(True):  # where every nan is an error
    found = strongest_candidates(predictions, TINY, sizes, TINY_CONFIG, count=9)
  assert found.quality is None
  np.testing.assert_array_equal(found.scores, found.class_scores)
