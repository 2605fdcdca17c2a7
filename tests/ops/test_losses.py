import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gfl_jax.ops import losses
from gfl_jax.ops.distributions import BinGrid, expectation
from tests import golden

GOLDEN = golden.load('losses')
BETAS = [0.0, 1.0, 2.0, 2.5]

# The losses of (prediction, target) alone.
PAIR_LOSSES = (
  losses.binary_cross_entropy,
  losses.focal_loss,
  losses.quality_focal_loss,
  losses.varifocal_loss,
  losses.gaussian_focal_loss,
  losses.iou_loss,
  losses.giou_loss,
)


def value_and_grad(loss, x):
  """Elements of the loss and the gradient of their sum, under jit as in training."""

  def total(x):
    elements = loss(x)
    return jnp.sum(elements), elements

  grad, elements = jax.jit(jax.grad(total, has_aux=True))(x)
  return elements, grad


def scattered(values, labels, num_classes):
  """[N, C] zeros with each row's value at its label; -1 and C are background."""
  hot = labels[:, None] == np.arange(num_classes)
  return np.where(hot, values[:, None], 0).astype(np.float32)


def close(actual, expected, rtol=1e-6, atol=1e-6):
  np.testing.assert_allclose(actual, expected, rtol=rtol, atol=atol)


# Parity with the authors' code.


@pytest.mark.parametrize('beta', BETAS)
def test_qfl_equals_the_authors(beta):
  logits, prefix = GOLDEN['qfl/logits'], f'qfl/beta{beta:g}'
  quality = scattered(GOLDEN['qfl/scores'], GOLDEN['qfl/labels'], logits.shape[1])
  loss = lambda x: losses.quality_focal_loss(x, quality, beta=beta)
  elements, grad = value_and_grad(loss, logits)
  close(elements, GOLDEN[f'{prefix}/loss_elem'])
  close(elements.sum(axis=1), GOLDEN[f'{prefix}/loss'], atol=0)
  close(grad, GOLDEN[f'{prefix}/grad'])


@pytest.mark.parametrize('reg_max', [7, 16, 32])
def test_dfl_equals_the_authors(reg_max):
  g = {k: GOLDEN[f'dfl/reg_max{reg_max}/{k}'] for k in ('logits', 'targets')}
  grid = BinGrid(0, reg_max, reg_max + 1)
  loss = lambda x: losses.distribution_focal_loss(x, g['targets'], grid)
  elements, grad = value_and_grad(loss, g['logits'])
  close(elements, GOLDEN[f'dfl/reg_max{reg_max}/loss'], atol=0)
  close(grad, GOLDEN[f'dfl/reg_max{reg_max}/grad'])


@pytest.mark.parametrize('eps', ['1e-06', '1e-07'])
def test_giou_loss_equals_the_authors_ties_included(eps):
  target = GOLDEN['giou/target']
  loss = lambda x: losses.giou_loss(x, target, eps=float(eps))
  elements, grad = value_and_grad(loss, GOLDEN['giou/pred'])
  close(elements, GOLDEN[f'giou/eps{eps}/loss'], atol=0)
  close(grad, GOLDEN[f'giou/eps{eps}/grad'])


def test_iou_loss_equals_the_authors():
  loss = losses.iou_loss(GOLDEN['giou/pred'], GOLDEN['giou/target'])
  close(loss, 1 - GOLDEN['giou/iou'])


def test_focal_loss_equals_the_authors():
  logits = GOLDEN['focal/logits']
  labels = scattered(np.ones(len(logits)), GOLDEN['focal/labels'], logits.shape[1])
  elements, grad = value_and_grad(lambda x: losses.focal_loss(x, labels), logits)
  close(elements, GOLDEN['focal/loss'])
  close(grad, GOLDEN['focal/grad'])


def test_gaussian_focal_loss_equals_the_authors():
  loss = lambda x: losses.gaussian_focal_loss(x, GOLDEN['gaussian/target'])
  elements, grad = value_and_grad(loss, GOLDEN['gaussian/logits'])
  close(elements, GOLDEN['gaussian/loss'], atol=0)
  close(grad, GOLDEN['gaussian/grad_logits'])


def test_varifocal_loss_equals_the_authors():
  loss = lambda x: losses.varifocal_loss(x, GOLDEN['varifocal/target'])
  elements, grad = value_and_grad(loss, GOLDEN['varifocal/logits'])
  close(elements, GOLDEN['varifocal/iou_weighted/loss'])
  close(grad, GOLDEN['varifocal/iou_weighted/grad'])


# Reduced as their recipe: sum(weight * loss) / (avg_factor + 2^-23) * loss weight.


def reduced(elements, prefix, avg_factor, loss_weight=1.0):
  weighted = np.asarray(elements, np.float64) * GOLDEN[f'{prefix}/weight']
  return loss_weight * weighted.sum() / (avg_factor + 2**-23)


@pytest.mark.parametrize('beta', BETAS)
def test_qfl_reduced_equals_the_authors(beta):
  g = {k: GOLDEN[f'qfl/{k}'] for k in ('logits', 'labels', 'scores')}
  quality = scattered(g['scores'], g['labels'], g['logits'].shape[1])
  elements = losses.quality_focal_loss(g['logits'], quality, beta=beta)
  total = reduced(elements.sum(axis=1), 'qfl', GOLDEN['qfl/avg_factor'])
  close(total, GOLDEN[f'qfl/beta{beta:g}/reduced'], atol=0)


@pytest.mark.parametrize('reg_max', [7, 16, 32])
def test_dfl_reduced_equals_the_authors(reg_max):
  prefix, grid = f'dfl/reg_max{reg_max}', BinGrid(0, reg_max, reg_max + 1)
  elements = losses.distribution_focal_loss(
    GOLDEN[f'{prefix}/logits'], GOLDEN[f'{prefix}/targets'], grid
  )
  total = reduced(elements, prefix, avg_factor=4, loss_weight=0.25)
  close(total, GOLDEN[f'{prefix}/reduced'], atol=0)


def test_giou_loss_reduced_equals_the_authors():
  elements = losses.giou_loss(GOLDEN['giou/pred'], GOLDEN['giou/target'])
  total = reduced(elements, 'giou', avg_factor=1, loss_weight=2)
  close(total, GOLDEN['giou/reduced'], atol=0)


def test_focal_loss_reduced_equals_the_authors():
  logits = GOLDEN['focal/logits']
  labels = scattered(np.ones(len(logits)), GOLDEN['focal/labels'], logits.shape[1])
  elements = losses.focal_loss(logits, labels).sum(axis=1)
  total = reduced(elements, 'focal', avg_factor=23)
  close(total, GOLDEN['focal/reduced_avg23'], atol=0)


# Truths that only the right formula has.

probabilities = st.floats(0.0625, 0.9375, width=32)
logits = st.floats(-15, 15, width=32)


@pytest.mark.parametrize('quality', [0.1, 0.5, 0.9])
@pytest.mark.parametrize('loss', [losses.quality_focal_loss, losses.varifocal_loss])
def test_joint_losses_have_their_slope_zero_at_the_quality(loss, quality):
  at, quality = jnp.array([np.log(quality / (1 - quality))]), jnp.array([quality])
  elements, grad = value_and_grad(lambda x: loss(x, quality), at)
  close(grad, [0.0])
  assert loss(at - 1, quality) > elements < loss(at + 1, quality)


def test_qfl_is_zero_at_the_quality_and_bce_is_not():
  at, quality = jnp.array([np.log(0.3 / 0.7)]), jnp.array([0.3])
  close(losses.quality_focal_loss(at, quality), [0.0])
  entropy = -(0.3 * np.log(0.3) + 0.7 * np.log(0.7))
  close(losses.quality_focal_loss(at, quality, beta=0), [entropy])


def test_binary_cross_entropy_is_that_of_the_probability():
  x = np.array([[-3.0, 0, 0.5], [2, 30, -30]], np.float32)
  y = np.array([[0.25, 1, 0], [0.75, 0, 1]], np.float32)
  # -log(p) = log(1 + exp(-x)), also where 1 - p is lost to rounding.
  expected = y * np.logaddexp(0, -x) + (1 - y) * np.logaddexp(0, x)
  elements, grad = value_and_grad(lambda x: losses.binary_cross_entropy(x, y), x)
  close(elements, expected)
  close(grad, 1 / (1 + np.exp(-x)) - y)
  labels = losses.binary_cross_entropy(x, y > 0.5)
  close(labels, losses.quality_focal_loss(x, (y > 0.5).astype(np.float32), beta=0))


@settings(max_examples=25, deadline=None)
@given(x=logits, y=probabilities, beta=st.sampled_from(BETAS))
def test_general_form_is_qfl(x, y, beta):
  x, y = jnp.array([x]), jnp.array([y])
  general = losses.generalized_focal_loss(
    jax.nn.sigmoid(-x), jax.nn.sigmoid(x), 0.0, 1.0, y, beta=beta
  )
  close(general, losses.quality_focal_loss(x, y, beta=beta), rtol=1e-5)


@settings(max_examples=25, deadline=None)
@given(x=logits, y=st.sampled_from([0, 1]), gamma=st.sampled_from(BETAS))
def test_general_form_is_focal_loss(x, y, gamma):
  # alpha = 1/2 weighs both kinds alike, by 1/2.
  x, y = jnp.array([x]), jnp.array([y])
  general = losses.generalized_focal_loss(
    jax.nn.sigmoid(-x), jax.nn.sigmoid(x), 0.0, 1.0, y.astype(x.dtype), beta=gamma
  )
  focal = losses.focal_loss(x, y, alpha=0.5, gamma=gamma)
  close(general, 2 * focal, rtol=1e-4)


@settings(max_examples=25, deadline=None)
@given(target=st.floats(-0.75, 1.25, width=32), seed=st.integers(0, 9))
def test_general_form_at_beta_0_is_dfl(target, seed):
  grid = BinGrid(-1, 1.5, 11)
  bin_logits = np.random.default_rng(seed).normal(size=(1, 11)).astype(np.float32)
  left = int((target - grid.start) / grid.width)
  p = jax.nn.softmax(bin_logits)
  general = losses.generalized_focal_loss(
    p[:, left],
    p[:, left + 1],
    float(grid.values[left]),
    float(grid.values[left + 1]),
    jnp.array([target]),
    beta=0,
  )
  # Eq. 7 weighs by distances, in the grid's unit; DFL's weights sum to 1.
  dfl = losses.distribution_focal_loss(bin_logits, jnp.array([target]), grid)
  close(general / grid.width, dfl, rtol=1e-4, atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(target=st.floats(0, 8, width=32))
def test_dfl_is_smallest_for_the_two_bins_whose_mean_is_the_target(target):
  grid, targets = BinGrid(0, 8, 5), jnp.array([target])
  weights = np.maximum(1 - np.abs(target / grid.width - np.arange(5)), 0)
  best = jnp.log(jnp.maximum(jnp.array([weights], jnp.float32), 1e-30))
  close(expectation(best, grid), targets, rtol=1e-5, atol=1e-5)
  _, grad = value_and_grad(
    lambda x: losses.distribution_focal_loss(x, targets, grid), best
  )
  close(grad, np.zeros((1, 5)))


def test_dfl_beyond_the_grid_is_that_of_the_nearest_end():
  grid, bin_logits = BinGrid(0, 4, 5), jnp.array([[0.1, 0.7, -0.3, 0.2, 0.5]] * 4)
  loss = losses.distribution_focal_loss(
    bin_logits, jnp.array([-3.0, 4.0, 4.5, 1e9]), grid
  )
  log_p = jax.nn.log_softmax(bin_logits[0])
  close(loss, [-log_p[0], -log_p[4], -log_p[4], -log_p[4]])
  nan = losses.distribution_focal_loss(bin_logits[:1], jnp.array([jnp.nan]), grid)
  assert np.isnan(nan)


def test_gaussian_nll_is_scipys_formula_and_smallest_at_the_squared_error():
  mean, target = jnp.array([1.5]), jnp.array([3.5])
  loss = lambda a: losses.gaussian_nll_loss(mean, a, target)
  close(loss(jnp.array([0.6])), [4 / (2 * np.exp(0.6)) + 0.3])
  _, grad = value_and_grad(loss, jnp.log(jnp.array([4.0])))
  close(grad, [0.0])


def test_kl_box_loss_is_gaussian_nll_near_the_target_and_linear_beyond():
  log_variance = jnp.array([-0.4, 0.7])
  near, target = jnp.array([2.75, 3.9]), jnp.array([3.0, 3.0])
  kl = losses.kl_box_loss(near, log_variance, target)
  close(kl, losses.gaussian_nll_loss(near, log_variance, target))
  _, grad = value_and_grad(
    lambda x: losses.kl_box_loss(x, log_variance, target), jnp.array([-5.0, 90.0])
  )
  close(grad, [-np.exp(0.4), np.exp(-0.7)])


def test_giou_loss_sees_boxes_that_do_not_overlap_and_iou_loss_does_not():
  pred, target = jnp.array([[0.0, 0, 1, 1]]), jnp.array([[3.0, 0, 4, 1]])
  close(losses.giou_loss(pred, target), [1 + 2 / 4])
  close(losses.iou_loss(pred, target), [1.0])
  _, towards = value_and_grad(lambda x: losses.giou_loss(x, target), pred)
  _, nothing = value_and_grad(lambda x: losses.iou_loss(x, target), pred)
  assert towards[0, 2] < 0
  close(nothing, np.zeros((1, 4)))


# Invariances: elements know nothing of each other; targets take no gradient.


@pytest.mark.parametrize('loss', PAIR_LOSSES)
def test_elements_are_independent_and_targets_take_no_gradient(loss):
  x, y = np.random.default_rng(0).uniform(size=(2, 3, 5, 4)).astype(np.float32)
  whole = loss(x, y)
  close(whole[1:, 2:4], loss(x[1:, 2:4], y[1:, 2:4]))
  grad = jax.grad(lambda y: jnp.sum(loss(x, y)))(y)
  np.testing.assert_array_equal(grad, np.zeros_like(y))


@pytest.mark.parametrize(
  'loss',
  [
    *PAIR_LOSSES,
    lambda x, y: losses.gaussian_nll_loss(x, x, y),
    lambda x, y: losses.kl_box_loss(x, x, y),
    lambda x, y: losses.generalized_focal_loss(x, x, 0.0, 1.0, y, beta=2),
    lambda x, y: losses.distribution_focal_loss(x, y[:, 0], BinGrid(0, 3, 4)),
  ],
)
def test_bfloat16_is_computed_in_float32_and_targets_are_not_rounded(loss):
  x, y = np.random.default_rng(0).uniform(size=(2, 20, 4)).astype(np.float32)
  narrow = jnp.asarray(x, jnp.bfloat16)
  for target in (y, jnp.asarray(y, jnp.bfloat16)):
    value = loss(narrow, target)
    assert value.dtype == jnp.float32
    close(value, loss(narrow.astype(jnp.float32), target.astype(jnp.float32)))


def test_float64_stays_float64():
  with jax.enable_x64(True):
    x, y = np.random.default_rng(0).uniform(size=(2, 20, 4))
    value = losses.quality_focal_loss(x, y)
    assert value.dtype == jnp.float64
    p = 1 / (1 + np.exp(-x))
    exact = (y - p) ** 2 * -(y * np.log(p) + (1 - y) * np.log(1 - p))
    close(value, exact, rtol=1e-14, atol=0)
    assert losses.quality_focal_loss(x.astype(np.float32), y).dtype == jnp.float64


# Edges.

SATURATED = np.array([100, 100, -100, -100, 0], np.float32)
OPPOSITE = np.array([0, 1, 0, 1, 1], np.float32)


@pytest.mark.parametrize('exponent', BETAS)
def test_saturated_logits_have_finite_losses_and_gradients(exponent):
  classwise = {
    'qfl': lambda x: losses.quality_focal_loss(x, OPPOSITE, beta=exponent),
    'focal': lambda x: losses.focal_loss(x, OPPOSITE, gamma=exponent),
    'varifocal': lambda x: losses.varifocal_loss(x, OPPOSITE, gamma=exponent),
    'gaussian': lambda x: losses.gaussian_focal_loss(x, OPPOSITE, alpha=exponent),
    'general': lambda x: losses.generalized_focal_loss(
      jax.nn.sigmoid(-x), jax.nn.sigmoid(x), 0.0, 1.0, OPPOSITE, beta=exponent
    ),
  }
  for name, loss in classwise.items():
    elements, grad = value_and_grad(loss, SATURATED)
    assert np.isfinite(elements).all() and np.isfinite(grad).all(), name
  _, grad = value_and_grad(classwise['qfl'], SATURATED)
  close(grad[:4], [1, 0, 0, -1])


@pytest.mark.parametrize('loss', [losses.gaussian_nll_loss, losses.kl_box_loss])
def test_saturated_log_variances_have_finite_losses_and_gradients(loss):
  mean, target = jnp.array([0.0, 7.0, 3.0]), jnp.array([2.0, 0.0, 3.0])
  for a in (-100.0, 100.0):
    elements, grad = value_and_grad(lambda x: loss(mean, x, target), jnp.full(3, a))
    assert np.isfinite(elements).all() and np.isfinite(grad).all()
    # A variance too small for its error is driven up, one too large down.
    np.testing.assert_array_equal(np.sign(grad[:2]), np.sign(a))


def test_saturated_bins_have_finite_losses_and_gradients():
  grid, targets = BinGrid(0, 2, 3), jnp.array([0.0, 2.0])
  elements, grad = value_and_grad(
    lambda x: losses.distribution_focal_loss(x, targets, grid),
    jnp.array([[100.0, -100, -100], [100.0, -100, -100]]),
  )
  close(elements, [0, 200])
  close(grad, [[0, 0, 0], [1, 0, -1]])


def test_losses_are_those_of_optax_where_optax_has_them():
  x = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32) * 5
  y = np.random.default_rng(1).uniform(size=(20, 3)).astype(np.float32)
  bce = optax.sigmoid_binary_cross_entropy(x, y)
  close(losses.quality_focal_loss(x, y, beta=0), bce)


# Bad input.


def test_exponents_between_0_and_1_are_refused():
  x = jnp.zeros((2, 3))
  for bad in (0.5, -1.0, float('nan')):
    with pytest.raises(ValueError, match=f'beta={bad}'):
      losses.quality_focal_loss(x, x, beta=bad)
    with pytest.raises(ValueError, match=f'gamma={bad}'):
      losses.focal_loss(x, x, gamma=bad)
    with pytest.raises(ValueError, match=f'alpha={bad}'):
      losses.gaussian_focal_loss(x, x, alpha=bad)


@pytest.mark.parametrize(
  'loss',
  [
    *PAIR_LOSSES,
    lambda x, y: losses.gaussian_nll_loss(x, x, y),
    lambda x, y: losses.kl_box_loss(x, y, x),
    lambda x, y: losses.generalized_focal_loss(x, x, 0.0, 1.0, y, beta=2),
    lambda x, y: losses.generalized_focal_loss(x, x, 0.0, y, x, beta=2),
  ],
)
@pytest.mark.parametrize('shape', [(3, 1), (1, 4), (4,)])
def test_shapes_that_differ_are_refused_though_they_would_broadcast(loss, shape):
  with pytest.raises(ValueError, match=r'shape=\(3, 4\).*must be equal'):
    jax.eval_shape(loss, jnp.zeros((3, 4)), jnp.zeros(shape))


def test_dfl_refuses_bins_that_are_not_the_grids_and_targets_of_another_shape():
  with pytest.raises(ValueError, match=r'\(2, 16\).*num_bins=17'):
    losses.distribution_focal_loss(jnp.zeros((2, 16)), jnp.zeros(2), BinGrid(0, 16, 17))
  with pytest.raises(ValueError, match=r'targets.shape=\(1,\)'):
    losses.distribution_focal_loss(jnp.zeros((2, 17)), jnp.zeros(1), BinGrid(0, 16, 17))
