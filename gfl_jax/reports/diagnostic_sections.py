"""Parts of a report: the paper's two arguments, measured; see diagnostics.py."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from gfl_jax.evaluation.diagnostics import LEVELS
from gfl_jax.models.scores import SCORES
from gfl_jax.reports import diagnostic_plots
from gfl_jax.reports.html_page import NOT_EVALUATED, paragraph, section, wide
from gfl_jax.reports.tables import Table, number

_TITLES = ('Is the score the quality?', 'Do the distributions mean anything?')
SCORE_ROWS = {
  'negatives_above_a_positive': 'share of the true negatives that have a higher final '
  'score than at least one true positive of their image; 0 is best',
  'outranking_negatives': 'share of the pairs of one image in which a true negative '
  'has a higher final score than a true positive; 0 is best, 0.5 is chance',
  'outranking_negatives_class_score': 'the same by the class score alone',
  'score_iou_correlation': 'rank correlation of final score and IoU over true '
  'positives: 1 if the better box always scores higher',
  'class_score_iou_correlation': 'the same of the class score alone',
  'detection_score_iou_correlation': 'rank correlation of score and IoU over all final '
  'detections, those of no object (IoU 0) among them',
  'calibration_error': 'how far the score of a detection is from its IoU, over ten '
  'bins of scores; 0 if the score is an IoU (expected calibration error)',
}
_BY_CLASS_SCORE = ('outranking_negatives_class_score', 'class_score_iou_correlation')
SIDE_ROWS = {
  'side_error': 'mean distance of the predicted from the annotated side, px',
  'side_crps': 'continuous ranked probability score of the distribution, px: as the '
  'error, but a distribution that tells its spread does better',
  'side_nll': 'mean negative log likelihood of the annotated side, nats (density per '
  'px); lower is better, comparable between representations',
  'sides_at_floor': 'share of sides that the distribution all but excludes (counted '
  'at a floor of 1e-6 per px)',
  'spread_correlation': 'rank correlation of the predicted and the true spread of a '
  'side',
  'spread_correlation_relative': 'the same over the sides that are not sharp, both '
  'spreads as shares of the box across the side: in px the size of the object, which '
  'the spread grows with, would be enough to order them',
  'constant_std': 'strides: the one deviation that stands in for those that Dirac does '
  'not predict, fitted to these very errors (it flatters Dirac)',
}


def sections(metrics: Mapping, path: Path, config: Mapping) -> list[str]:
  """Both parts.

  Args:
    metrics: of the evaluation; empty if there is none yet.
    path: of its diagnostics.npz.
    config: the run's.
  """
  if 'diagnostics' not in metrics or not path.exists():
    return [section(title, paragraph(NOT_EVALUATED)) for title in _TITLES]
  scalars = metrics['diagnostics']
  with np.load(path) as file:
    arrays = dict(file)
  return [
    section(_TITLES[0], *_scores(scalars, arrays, config)),
    section(_TITLES[1], *_sides(scalars, arrays, config)),
  ]


def _scores(scalars: Mapping, arrays: Mapping, config: Mapping) -> list[str]:
  note = (
    f'Score: {config["score"]["kind"]}. Candidates before suppression: '
    f'{scalars["true_positives"]:,.0f} true positives (IoU of at least 0.5 with a true '
    f'box of the class) and {scalars["true_negatives"]:,.0f} true negatives (IoU below '
    '0.1 with every true box). A score that is the quality puts every negative below '
    'every positive and orders the positives by their IoU. The figure shows a sample '
    'with as many negatives as positives, where there are enough.'
  )
  if not len(arrays['sample']) and not arrays['reliability'][:, 0].any():
    return [paragraph('There is no candidate to judge.')]
  figure = wide(diagnostic_plots.score_figure(arrays))
  # Without a branch they would only repeat the final score's.
  by_class = {} if SCORES[config['score']['kind']].use == 'branch' else _BY_CLASS_SCORE
  rows = {name: text for name, text in SCORE_ROWS.items() if name not in by_class}
  return [paragraph(note), figure, _table(scalars, rows), *_positives(scalars)]


def _positives(scalars: Mapping) -> list[str]:
  if not scalars['true_positives']:
    return []
  iou, centerness = (
    f'{number(scalars[f"{label}_mean"], 2)} ± {number(scalars[f"{label}_std"], 2)}'
    for label in ('positive_iou', 'positive_centerness')
  )
  return [
    paragraph(
      f'The true positives have an IoU of {iou} with their true box, and their anchor '
      f'points a centerness of {centerness} in it (mean ± standard deviation of all). '
      'They are candidates that turned out well; the positives that training assigns '
      'stand beside the paper’s under “Training”.'
    )
  ]


def _sides(scalars: Mapping, arrays: Mapping, config: Mapping) -> list[str]:
  if not scalars['matched_detections']:
    return [paragraph('No detection matches a true box.')]
  note = (
    f'Box: {config["box"]["kind"]}. The sides of {scalars["matched_detections"]:,.0f} '
    'detections matched to a true box (IoU of at least 0.5, score of at least 0.05): '
    'how well the predicted distribution foretells where the annotated side lies. '
    'A distribution that means what it says holds the annotation in its central 80 % '
    'interval in 80 % of the cases.'
  )
  coverage = [scalars[f'coverage_{level}'] for level in LEVELS]
  figure = diagnostic_plots.spread_figure(arrays, coverage)
  parts = [paragraph(note), wide(figure)]
  if len(arrays['edge_kinds']):
    parts.append(_kinds(scalars, arrays))
  return [*parts, _table(scalars, SIDE_ROWS)]


def _table(scalars: Mapping, meanings: Mapping[str, str]) -> str:
  rows = [
    [name, number(scalars[name]), meaning]
    for name, meaning in meanings.items()
    if scalars[name] is not None
  ]
  return Table('lrl', ['measure', 'value', 'meaning'], rows).as_html()


def _kinds(scalars: Mapping, arrays: Mapping) -> str:
  head = ['sides', 'count', 'true σ px', 'predicted σ px', 'predicted / true']
  head += ['CRPS px', 'NLL', *(f'in {level} %' for level in LEVELS)]
  rows = []
  for name, values in zip(arrays['edge_kinds'], arrays['kind_table'], strict=True):
    count, predicted, true, *coverage = values.tolist()
    measures = [
      scalars[f'{k}_{name}'] for k in ('spread_ratio', 'side_crps', 'side_nll')
    ]
    figures = [true, predicted, *measures, *coverage]
    rows.append([str(name), f'{count:.0f}', *(number(x, 2) for x in figures)])
  return Table('l' + 'r' * (len(head) - 1), head, rows).as_html()
