"""Agreement of two lists of numbers: by rank, and as a calibrated forecast."""

import math
from collections.abc import Sequence

import numpy as np


def average_ranks(values: np.ndarray) -> np.ndarray:
  """[n] ranks 1..n by rising value; equal values share the mean of their ranks."""
  _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
  return (np.cumsum(counts) - (counts - 1) / 2)[inverse]


def spearman(first: np.ndarray, second: np.ndarray) -> float | None:
  """Spearman's rank correlation of two lists [n]; 1: the same order, -1: the opposite.

  None if one of them has no two different values: then there is no order.
  """
  if len(first) < 2:
    return None
  ranks = np.stack([average_ranks(first), average_ranks(second)])
  ranks -= ranks.mean(-1, keepdims=True)
  lengths = np.sqrt(np.square(ranks).sum(-1))
  return float((ranks[0] * ranks[1]).sum() / lengths.prod()) if lengths.all() else None


def kendall_tau(first: Sequence[float], second: Sequence[float]) -> float | None:
  """Kendall's tau-b of two equally long lists: 1 the same order, -1 the opposite.

  None if one of the lists is all ties or shorter than 2: there is no order.
  """
  signs = [
    (np.sign(first[i] - first[j]), np.sign(second[i] - second[j]))
    for i in range(len(first))
    for j in range(i)
  ]
  untied = [sum(abs(pair[k]) for pair in signs) for k in (0, 1)]
  if not all(untied):
    return None
  return float(sum(a * b for a, b in signs) / math.sqrt(untied[0] * untied[1]))


def exceeding_pairs(below: np.ndarray, above: np.ndarray) -> float:
  """Number of pairs in which a value of `below` [n] exceeds one of `above` [m].

  Equal values count half. Divided by n * m it is 1 - the area under the ROC curve of
  telling `above` from `below`.
  """
  ordered = np.sort(above)
  less = np.searchsorted(ordered, below, 'left')
  at_most = np.searchsorted(ordered, below, 'right')
  return float(less.sum() + at_most.sum()) / 2


def reliability(scores: np.ndarray, outcomes: np.ndarray, num_bins: int) -> np.ndarray:
  """[num_bins, 3]: how many scores lie in each of equal bins of [0, 1], their mean, and
  the mean of their outcomes; NaN where there is none. 1 belongs to the last bin."""
  bins = np.clip((scores * num_bins).astype(int), 0, num_bins - 1)
  counts = np.bincount(bins, minlength=num_bins)
  sums = [np.bincount(bins, x, num_bins) for x in (scores, outcomes)]
  means = [np.where(counts, total / np.maximum(counts, 1), np.nan) for total in sums]
  return np.stack([counts, *means], -1)


def calibration_error(table: np.ndarray) -> float | None:
  """Expected calibration error of a `reliability` table: the mean over all scores of
  |mean score - mean outcome| of their bin; None of no scores.

  Source: Guo et al., arXiv:1706.04599, eq. 3.
  """
  counts, scores, outcomes = table[table[:, 0] > 0].T
  if not len(counts):
    return None
  return float((counts * np.abs(scores - outcomes)).sum() / counts.sum())
