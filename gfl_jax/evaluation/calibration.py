"""How well the score of a detection says what its IoU is."""

import numpy as np


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
  if not len(counts):
    return None
  return float((counts * np.abs(scores - outcomes)).sum() / counts.sum())
