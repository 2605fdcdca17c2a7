"""Measures of the paper's two arguments: whether the score agrees with the quality, and
whether the distributions of the sides are right.

The first is measured on candidates before suppression (the anchors of the highest class
score, `diagnostic_rows.NUM_CANDIDATES` per image, each with its best class), and on the
final detections. A candidate is a true positive if its IoU with a true box of its class
is at least 0.5, a true negative if its IoU with every true box is below 0.1. Candidates
between them are left out: how far they should rank below a positive is a matter of
degree, which AP measures. Crowds are not true boxes. Boxes without area, or with more
than half of it on a crowd, are left out.

The second is measured on detections with a score of at least 0.05 that match a true
box: same class, IoU at least 0.5, greedy by score, each true box once. The errors are
those of the predicted distributions, before variance voting and clipping.
"""

from typing import Any

import numpy as np
import scipy

from gfl_jax.evaluation import side_distributions
from gfl_jax.evaluation.diagnostic_rows import Rows

LEVELS = (50, 80, 95)  # per cent, of central intervals
NUM_BINS = 10  # of the reliability table
# Per px; the floor of densities, because a side beyond the grid has density 0. So its
# negative log likelihood is at most 13.8 nats; the share of such sides is reported.
DENSITY_FLOOR = 1e-6
SAMPLE_SIZE = 1000  # points of a scatter plot: of positives, of negatives, of sides
Scalars = dict[str, float | None]


def summarize(rows: Rows, box_kind: str, edge_kinds: list[str]) -> tuple[Scalars, Rows]:
  """The measures of an evaluation, and the data of its plots.

  Args:
    rows: `DiagnosticRows.rows()`, joined over all processes.
    box_kind: the config's `box.kind`.
    edge_kinds: `DiagnosticRows.edge_kinds`.

  Returns:
    Scalars, each a float or None where there is nothing to measure:
      true_positives, true_negatives: numbers of candidates.
      negatives_above_a_positive: share of all true negatives that have a higher final
        score than at least one true positive of their image.
      outranking_negatives: share of all (negative, positive) pairs of the same image in
        which the negative has the higher final score; equal scores count half.
        outranking_negatives_class_score: by the class score alone.
      score_iou_correlation: Spearman's, final score against IoU over true positives;
        class_score_iou_correlation: of the class score alone.
      detection_score_iou_correlation: over all final detections, with the IoU of the
        best true box of the class.
      calibration_error: expected calibration error of a detection's score as that IoU.
      positive_iou_mean, _std: over all true positives, of their IoU with the best true
        box of the class; positive_centerness_mean, _std: of the centerness of their
        points in it, 0 outside. Here no IoU is below 0.5; the positives that training
        assigns, which are those of the paper's figure 12, are in the training log.
      matched_detections: number of detections that the following measures are over.
      spread_correlation: Spearman's, predicted against true std of a side, in px.
        spread_correlation_relative: over sides that are not sharp, both divided by the
        true box's extent across the side. The sides of large objects have a large std
        in px, so knowing the size alone would give a high correlation in px.
      spread_ratio_KIND: mean predicted / mean true std, px, per kind of side.
      coverage_50, _80, _95: share of annotated sides in the central interval.
      side_error, side_crps, side_nll: mean absolute error, CRPS (px) and negative log
        likelihood (nats, density per px) of the annotated sides, in original px; the
        last two also per kind of side, side_crps_KIND and side_nll_KIND.
      sides_at_floor: share of the sides whose density is below `DENSITY_FLOOR`.
      constant_std: strides; of Dirac, the one std of all its errors.
    Arrays: `sample` [n, 5] (class score, quality or nan, final score, IoU, 1 if
      positive), `reliability` (see `reliability`), `edge_kinds` [K], by
      rising true std, `kind_table` [K, 6] (count, mean predicted and mean true std,
      coverage at `LEVELS`), `spread_sample` [n, 3] (true and predicted std in px, index
      of the kind).
  """
  scalars, arrays = _inconsistency(rows)
  more_scalars, more_arrays = _flexibility(rows, box_kind, edge_kinds)
  return scalars | more_scalars, arrays | more_arrays


def _inconsistency(rows: Rows) -> tuple[Scalars, Rows]:
  by_score, by_class_score, num_pairs = rows['pairs'].sum(0, np.float64)
  class_score, score, iou, centerness = rows['positives'].T
  num_negatives, num_above = rows['negatives'].sum(0, np.float64)
  detection_score, detection_iou = rows['detections'].T
  table = reliability(detection_score, detection_iou, NUM_BINS)
  scalars = {
    'true_positives': float(len(iou)),
    'true_negatives': float(num_negatives),
    'negatives_above_a_positive': _share(num_above, num_negatives),
    'outranking_negatives': _share(by_score, num_pairs),
    'outranking_negatives_class_score': _share(by_class_score, num_pairs),
    'score_iou_correlation': _spearman(score, iou),
    'class_score_iou_correlation': _spearman(class_score, iou),
    'detection_score_iou_correlation': _spearman(detection_score, detection_iou),
    'calibration_error': calibration_error(table),
    'positive_iou_mean': _mean(iou),
    'positive_iou_std': _std(iou),
    'positive_centerness_mean': _mean(centerness),
    'positive_centerness_std': _std(centerness),
  }
  positive = rows['sample'][:, 4] > 0
  sample = [_some(rows['sample'][group]) for group in (positive, ~positive)]
  return scalars, {'sample': np.concatenate(sample), 'reliability': table}


def _flexibility(rows: Rows, box_kind: str, edge_kinds) -> tuple[Scalars, Rows]:
  error, cdf, density = (rows[f'side_{k}'].ravel() for k in ('error', 'cdf', 'density'))
  px, true_std, kind = (rows[f'side_{k}'].ravel() for k in ('px', 'sigma', 'kind'))
  std, crps = rows['side_std'].ravel() * px, rows['side_crps'].ravel() * px
  constant_std = None
  if box_kind == 'dirac' and error.size:
    constant_std = float(np.sqrt(np.square(error, dtype=np.float64).mean()))
    cdf, density, _ = side_distributions.normal(error, constant_std)
    std = np.full_like(std, np.nan)  # Dirac predicts none
  density = density / px
  nll = -np.log(np.maximum(density, DENSITY_FLOOR))
  covered = np.abs(cdf - 0.5)[:, None] <= np.array(LEVELS) / 200

  known = np.isfinite(true_std) & np.isfinite(std)
  names = np.array([*edge_kinds, 'unknown'])[kind.astype(int)]  # -1: the last
  ambiguous = known & ~np.isin(names, ('sharp', 'unknown'))
  extent = rows['side_extent'].ravel()
  shares = [spread[ambiguous] / extent[ambiguous] for spread in (std, true_std)]
  scalars = {
    'matched_detections': float(len(rows['side_error'])),
    'spread_correlation': _spearman(std[known], true_std[known]),
    'spread_correlation_relative': _spearman(*shares),
    'side_error': _mean(np.abs(error) * px),
    'side_crps': _mean(crps),
    'side_nll': _mean(nll),
    'sides_at_floor': _mean(density < DENSITY_FLOOR),
    'constant_std': constant_std,
  }
  for level, column in zip(LEVELS, covered.T, strict=True):
    scalars[f'coverage_{level}'] = _mean(column)
  table = []
  for name in edge_kinds:
    of_kind = names == name
    means = [_mean(std[of_kind]), _mean(true_std[of_kind])]
    scalars |= {
      f'spread_ratio_{name}': _share(*means),
      f'side_crps_{name}': _mean(crps[of_kind]),
      f'side_nll_{name}': _mean(nll[of_kind]),
    }
    coverage = [_mean(column[of_kind]) for column in covered.T]
    table.append([of_kind.sum(), *means, *coverage])
  table = np.reshape(np.array(table, np.float64), (-1, 3 + len(LEVELS)))
  order = np.argsort(table[:, 2])
  position = np.argsort(order)  # of a kind in the table's order
  sides = np.stack([true_std, std, np.append(position, -1)[kind.astype(int)]], -1)
  return scalars, {
    'edge_kinds': np.array(edge_kinds, np.str_)[order],
    'kind_table': table[order],
    'spread_sample': _some(sides[known]),
  }


def reliability(scores: np.ndarray, outcomes: np.ndarray, num_bins: int) -> np.ndarray:
  """[num_bins, 3]: for each of equal bins of [0, 1], the number of scores in it, their
  mean and the mean of their outcomes; NaN in an empty bin. 1 is in the last bin."""
  bins = np.clip((scores * num_bins).astype(int), 0, num_bins - 1)
  counts = np.bincount(bins, minlength=num_bins)
  sums = [np.bincount(bins, x, num_bins) for x in (scores, outcomes)]
  means = [np.where(counts, total / np.maximum(counts, 1), np.nan) for total in sums]
  return np.stack([counts, *means], -1)


def calibration_error(table: np.ndarray) -> float | None:
  """Expected calibration error of a `reliability` table: the mean over all scores of
  |mean score - mean outcome| of their bin; None without scores.

  Source: Guo et al., arXiv:1706.04599, eq. 3.
  """
  counts, scores, outcomes = table[table[:, 0] > 0].T
  gaps = np.abs(scores - outcomes)
  return float(np.average(gaps, weights=counts)) if len(gaps) else None


def _spearman(first: np.ndarray, second: np.ndarray) -> float | None:
  """Spearman's rank correlation of two lists [n]; None if one is all equal or empty."""
  if not all(values.size and np.ptp(values) for values in (first, second)):
    return None
  result: Any = scipy.stats.spearmanr(first, second)  # stats is imported here
  return float(result.statistic)


def _some(rows: np.ndarray) -> np.ndarray:
  """A random sample of at most `SAMPLE_SIZE` rows, with a fixed seed."""
  return np.random.default_rng(0).permutation(rows)[:SAMPLE_SIZE]


def _mean(values: np.ndarray) -> float | None:
  """None if there are no values or one of them is nan."""
  mean = values.mean(dtype=np.float64) if values.size else np.nan
  return float(mean) if np.isfinite(mean) else None


def _std(values: np.ndarray) -> float | None:
  return float(values.std(dtype=np.float64)) if values.size else None


def _share(part: float | None, whole: float | None) -> float | None:
  return None if part is None or not whole else float(part / whole)
