"""Losses of dense detectors: element-wise, on logits; nothing is reduced.

Shapes must be equal: nothing is broadcast, and a difference is a ValueError while
tracing. No gradient flows into targets. Values and gradients are finite at logits of
+-100. The factors in front of the cross-entropies are differentiated, too. Arithmetic
and results are float32, or float64 if any input is float64.

Exponents are Python numbers, 0 or at least 1; another one is a ValueError, because
between 0 and 1 the slope at a perfect prediction is infinite.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from gfl_jax.ops import boxes as box_ops
from gfl_jax.ops.arrays import ArrayLike, at_least_float32
from gfl_jax.ops.distributions import BinGrid, check_bins

# Annotated without a shape, so that a shape that differs is the ValueError below, also
# under the tests' checks of annotations.
AnyShape = Float[ArrayLike, '...']
Labels = AnyShape | Int[ArrayLike, '...'] | Bool[ArrayLike, '...']


def binary_cross_entropy(
  logits: Float[ArrayLike, '*n'], targets: Labels
) -> Float[Array, '*n']:
  """-(y * log(p) + (1 - y) * log(1 - p)), with y the targets and p = sigmoid(logits).

  Args:
    logits: before the sigmoid.
    targets: in [0, 1]: labels, or a quality such as centerness or an IoU.
  """
  logits, targets = _equal_shapes(logits=logits, targets=targets)
  return _bce(logits, jax.lax.stop_gradient(targets))


def focal_loss(
  logits: Float[ArrayLike, '*n c'],
  labels: Labels,
  *,
  alpha: float = 0.25,
  gamma: float = 2.0,
) -> Float[Array, '*n c']:
  """alpha_t * (1 - p_t)^gamma * BCE(logits, labels).

  Where the label is 1, p_t is sigmoid(logits) and alpha_t is alpha; where it is 0, p_t
  is 1 - sigmoid(logits) and alpha_t is 1 - alpha.

  Args:
    logits: class scores before the sigmoid.
    labels: 1 at an object's class, else 0.
    alpha: weight of the label 1, in [0, 1].
    gamma: exponent of the modulating factor; 0 gives alpha-balanced BCE.

  Source: Lin et al., arXiv:1708.02002; mmdet's sigmoid_focal_loss.
  """
  logits, labels = _equal_shapes(logits=logits, labels=labels)
  labels = jax.lax.stop_gradient(labels)
  factor = _power(_abs(labels - jax.nn.sigmoid(logits)), gamma, 'gamma')
  return (alpha * labels + (1 - alpha) * (1 - labels)) * factor * _bce(logits, labels)


def quality_focal_loss(
  logits: Float[ArrayLike, '*n c'], quality: AnyShape, *, beta: float = 2.0
) -> Float[Array, '*n c']:
  """|quality - sigmoid(logits)|^beta * BCE(logits, quality).

  Args:
    logits: joint scores of class and quality before the sigmoid.
    quality: IoU in [0, 1] of the decoded box at its ground-truth class, else 0.
    beta: exponent of the modulating factor; 0 gives plain BCE.

  Source: GFL, arXiv:2006.04388, eq. 4; mmdet's quality_focal_loss before its sum over
  classes.
  """
  logits, quality = _equal_shapes(logits=logits, quality=quality)
  quality = jax.lax.stop_gradient(quality)
  factor = _power(_abs(quality - jax.nn.sigmoid(logits)), beta, 'beta')
  return factor * _bce(logits, quality)


def gaussian_focal_loss(
  logits: Float[ArrayLike, '*n'],
  heatmap: AnyShape,
  *,
  alpha: float = 2.0,
  gamma: float = 4.0,
) -> Float[Array, '*n']:
  """CornerNet's focal loss around Gaussian peaks, with p = sigmoid(logits).

  -(1 - p)^alpha * log(p) where the heatmap is exactly 1, elsewhere
  -(1 - heatmap)^gamma * p^alpha * log(1 - p).

  Args:
    logits: before the sigmoid.
    heatmap: in [0, 1].
    alpha: exponent of the prediction's error.
    gamma: exponent that lowers the loss around peaks.

  Source: Law and Deng, arXiv:1808.01244, eq. 1; mmdet's gaussian_focal_loss, whose
  1e-12 inside the logarithms limits the loss of a saturated logit to 27.6.
  """
  logits, heatmap = _equal_shapes(logits=logits, heatmap=heatmap)
  heatmap = jax.lax.stop_gradient(heatmap)
  probability, eps = jax.nn.sigmoid(logits), 1e-12
  log = lambda p: jnp.log(jnp.maximum(p, eps))  # XLA would turn 1 - p + eps into 1 - p
  peak = -log(probability) * _power(1 - probability, alpha, 'alpha')
  around = -log(1 - probability) * _power(probability, alpha, 'alpha')
  return jnp.where(heatmap == 1, peak, around * (1 - heatmap) ** gamma)


def varifocal_loss(
  logits: Float[ArrayLike, '*n c'],
  quality: AnyShape,
  *,
  alpha: float = 0.75,
  gamma: float = 2.0,
) -> Float[Array, '*n c']:
  """quality * BCE(logits, quality) where quality > 0, else alpha * p^gamma * BCE.

  Args:
    logits: joint scores of class and quality before the sigmoid; p = sigmoid(logits).
    quality: IoU in [0, 1] of the decoded box at its ground-truth class, else 0.
    alpha: weight of the negatives.
    gamma: exponent for the negatives.

  Source: Zhang et al., arXiv:2008.13367, eq. 2; mmdet's varifocal_loss (iou_weighted).
  """
  logits, quality = _equal_shapes(logits=logits, quality=quality)
  quality = jax.lax.stop_gradient(quality)
  negative = alpha * _power(jax.nn.sigmoid(logits), gamma, 'gamma')
  return jnp.where(quality > 0, quality, negative) * _bce(logits, quality)


def distribution_focal_loss(
  bin_logits: Float[ArrayLike, '*n bins'], targets: AnyShape, grid: BinGrid
) -> Float[Array, '*n']:
  """Cross-entropy of a box side's distribution with the two bins around its target.

  -(w_i * log p_i + w_(i+1) * log p_(i+1)), where the target lies between bins i and
  i + 1. The nearer bin has the larger weight: the weights sum to 1, and the mean of the
  two bins' values under them is the target.

  Args:
    bin_logits: of one side, before the softmax.
    targets: distance to the true side, in strides. One beyond the grid is moved to the
      grid's nearest end; `distributions.clamp_targets` is the recipe's clamp.
    grid: values of the bins, in strides.

  Raises:
    ValueError: a last axis that is not the grid's bins; leading axes that differ.

  Source: GFL, arXiv:2006.04388, eq. 6; mmdet's distribution_focal_loss.
  """
  check_bins(bin_logits, grid)
  if bin_logits.shape[:-1] != targets.shape:
    raise ValueError(f'{targets.shape=} must be {bin_logits.shape=} without its bins')
  bin_logits, targets = at_least_float32(bin_logits, targets)
  position = (jax.lax.stop_gradient(targets) - grid.start) / grid.width
  position = jnp.clip(position, 0, grid.num_bins - 1)
  bins = jnp.arange(grid.num_bins, dtype=position.dtype)
  bins = bins.reshape((1,) * position.ndim + (-1,))
  # Both weights at once, without a gather: 1 at the target, falling to 0 one bin away.
  weights = jnp.maximum(1 - jnp.abs(position[..., None] - bins), 0)
  return -jnp.sum(weights * jax.nn.log_softmax(bin_logits), axis=-1)


def generalized_focal_loss(
  prob_left: Float[ArrayLike, '*n'],
  prob_right: AnyShape,
  left: AnyShape | float,
  right: AnyShape | float,
  target: AnyShape,
  *,
  beta: float,
) -> Float[Array, '*n']:
  """The paper's general form, of which focal, QFL and DFL are special cases.

  -|y - (y_l p_l + y_r p_r)|^beta * ((y_r - y) log p_l + (y - y_l) log p_r), with y the
  target between the values y_l and y_r. QFL: y_l = 0, y_r = 1, p_r = sigmoid(logits).
  Focal loss: the same with y in {0, 1}. DFL: beta = 0 and neighboring bins.
  This form takes probabilities and is for study; train with the special cases.

  Args:
    prob_left: probability p_l of the left value, in [0, 1].
    prob_right: probability p_r of the right value, in [0, 1].
    left: y_l, one number or one per element.
    right: y_r, one number or one per element.
    target: y in [left, right], in their unit.
    beta: exponent of the error of the mean.

  Source: GFL, arXiv:2006.04388, eq. 7. Logarithms are floored at that of the smallest
  normal number, so that a probability of 0 gives a finite loss.
  """
  left, right = (
    x if jnp.ndim(x) else jnp.broadcast_to(x, target.shape) for x in (left, right)
  )
  prob_left, prob_right, left, right, target = _equal_shapes(
    prob_left=prob_left, prob_right=prob_right, left=left, right=right, target=target
  )
  target, left, right = jax.lax.stop_gradient((target, left, right))
  factor = _abs(target - (left * prob_left + right * prob_right))
  tiny = jnp.finfo(prob_left.dtype).tiny
  log_left = jnp.log(jnp.maximum(prob_left, tiny))
  log_right = jnp.log(jnp.maximum(prob_right, tiny))
  cross_entropy = -((right - target) * log_left + (target - left) * log_right)
  return _power(factor, beta, 'beta') * cross_entropy


def gaussian_nll_loss(
  mean: Float[ArrayLike, '*n'], log_variance: AnyShape, target: AnyShape
) -> Float[Array, '*n']:
  """(mean - target)^2 / (2 variance) + log_variance / 2.

  The negative log-likelihood of a Gaussian without its constant log(2 pi) / 2.

  Args:
    mean: predicted distance to the side, in strides.
    log_variance: logarithm of the variance in strides squared. Below -20 (a std of
      5e-5 strides) 1 / variance continues as a straight line in -log_variance.
    target: true distance, in strides.

  Source: GFL, arXiv:2006.04388, table 5; Gaussian YOLOv3, arXiv:1904.04620.
  """
  mean, log_variance, target = _equal_shapes(
    mean=mean, log_variance=log_variance, target=target
  )
  squared_error = jnp.square(mean - jax.lax.stop_gradient(target))
  return _precision(log_variance) * squared_error / 2 + log_variance / 2


def kl_box_loss(
  mean: Float[ArrayLike, '*n'], log_variance: AnyShape, target: AnyShape
) -> Float[Array, '*n']:
  """KL divergence from a Dirac target to a Gaussian, linear for errors above 1.

  With d = |mean - target|: (d^2 / 2 if d <= 1 else d - 1/2) / variance
  + log_variance / 2.

  Args:
    mean: predicted distance to the side, in strides.
    log_variance: as in `gaussian_nll_loss`.
    target: true distance, in strides.

  Source: He et al., arXiv:1809.08545, eqs. 9 and 10.
  """
  mean, log_variance, target = _equal_shapes(
    mean=mean, log_variance=log_variance, target=target
  )
  error = _abs(mean - jax.lax.stop_gradient(target))
  smooth_l1 = jnp.where(error <= 1, jnp.square(error) / 2, error - 0.5)
  return _precision(log_variance) * smooth_l1 + log_variance / 2


def iou_loss(
  pred: Float[ArrayLike, '*n 4'], target: AnyShape, *, eps: float = 1e-6
) -> Float[Array, '*n']:
  """1 - IoU, in [0, 1] (the linear form, not UnitBox's -log(IoU)).

  Args:
    pred: boxes (x1, y1, x2, y2).
    target: boxes in the same unit.
    eps: floor of the union, in square units.
  """
  pred, target = _equal_shapes(pred=pred, target=target)
  return 1 - box_ops.iou(pred, jax.lax.stop_gradient(target), eps=eps)


def giou_loss(
  pred: Float[ArrayLike, '*n 4'], target: AnyShape, *, eps: float = 1e-6
) -> Float[Array, '*n']:
  """1 - GIoU, in [0, 2].

  Args:
    pred: boxes (x1, y1, x2, y2).
    target: boxes in the same unit.
    eps: floor of the union and of the hull, in square units.

  Source: Rezatofighi et al., arXiv:1902.09630; mmdet's GIoULoss.
  """
  pred, target = _equal_shapes(pred=pred, target=target)
  return 1 - box_ops.giou(pred, jax.lax.stop_gradient(target), eps=eps)


def _equal_shapes(**arrays):
  if len({x.shape for x in arrays.values()}) > 1:
    shapes = ', '.join(f'{name}.shape={x.shape}' for name, x in arrays.items())
    raise ValueError(f'{shapes} must be equal: losses do not broadcast')
  return at_least_float32(*arrays.values())


def _abs(x):
  # With slope 0 at 0, as in torch; that of jnp.abs is 1.
  return jnp.maximum(x, -x)


def _bce(logits, targets):
  # max(x, 0) - x * y + log(1 + exp(-|x|)): exact near 0 too, with a single exponential.
  softplus = jnp.log1p(jnp.exp(-_abs(logits)))
  return jnp.maximum(logits, 0) - logits * targets + softplus


def _power(base, exponent, name):
  if not (exponent == 0 or exponent >= 1):
    raise ValueError(f'{name}={exponent} must be 0 or at least 1')
  # Whole exponents become products, which are cheaper than a power, and 0 a constant.
  return base ** (int(exponent) if float(exponent).is_integer() else exponent)


def _precision(log_variance):
  # exp(-log_variance) while that is far from overflow, then its tangent: it is finite,
  # and its slope still pushes a variance near 0 back up.
  exponent = -log_variance
  return jnp.exp(jnp.minimum(exponent, 20)) * (1 + jnp.maximum(exponent - 20, 0))
