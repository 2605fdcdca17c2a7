"""Parts of a report: whether the score is the quality, and whether the distributions of
sides mean anything. See evaluation/diagnostics.py for the measures."""

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
  'negatives_above_a_positive': 'share of the true negatives that score higher than at '
  'least one true positive of their image; 0 is best',
  'outranking_negatives': 'share of the pairs of a true negative and a true positive '
  'of one image in which the negative scores higher; 0 is best, 0.5 is chance',
  'outranking_negatives_class_score': 'the same by the class score alone',
  'score_iou_correlation': 'rank correlation of final score and IoU over true '
  'positives: 1 if the better box always scores higher',
  'class_score_iou_correlation': 'the same by the class score alone',
  'detection_score_iou_correlation': 'rank correlation of score and IoU over all final '
  'detections, also those of no object (IoU 0)',
  'calibration_error': 'expected calibration error: mean difference between score and '
  'IoU of the detections, over ten bins of scores; 0 if the score is an IoU',
}
_BY_CLASS_SCORE = ('outranking_negatives_class_score', 'class_score_iou_correlation')
SIDE_ROWS = {
  'side_error': 'mean distance between the predicted and the annotated side, px',
  'side_crps': 'continuous ranked probability score, px: like the error, but lower if '
  'the distribution knows its spread',
  'side_nll': 'mean negative log likelihood of the annotated side, nats (density per '
  'px); lower is better, comparable between box kinds',
  'sides_at_floor': 'share of sides that the distribution almost excludes: a density '
  'below 1e-6 per px, which is counted as 1e-6',
  'spread_correlation': 'rank correlation of the predicted and the true spread of a '
  'side',
  'spread_correlation_relative': 'the same over sides that are not sharp, both spreads '
  'divided by the size of the box across the side: in px, spreads grow with the '
  'object, and its size alone would order them',
  'constant_std': 'strides: the constant spread given to Dirac, which predicts none; '
  'fitted to these errors, so it flatters Dirac',
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
    section(_TITLES[0], *_scores(scalars, arrays, config['score']['kind'])),
    section(_TITLES[1], *_sides(scalars, arrays, config['box']['kind'])),
  ]


def _scores(scalars: Mapping, arrays: Mapping, kind: str) -> list[str]:
  if not len(arrays['sample']) and not arrays['reliability'][:, 0].any():
    return [paragraph('There is no candidate.')]
  note = (
    f'Score: {kind}. Candidates before suppression: {scalars["true_positives"]:,.0f} '
    'true positives (IoU of at least 0.5 with a true box of the class) and '
    f'{scalars["true_negatives"]:,.0f} true negatives (IoU below 0.1 with every true '
    'box). A score that is the quality puts every negative below every positive and '
    'orders the positives by their IoU. The figure shows a sample with as many '
    'negatives as positives, where there are enough.'
  )
  # Without a branch they would only repeat the final score's.
  left_out = () if SCORES[kind].use == 'branch' else _BY_CLASS_SCORE
  rows = {name: text for name, text in SCORE_ROWS.items() if name not in left_out}
  figure = wide(diagnostic_plots.score_figure(arrays))
  parts = [paragraph(note), figure, _table(scalars, rows)]
  if scalars['true_positives']:
    iou, centerness = (
      f'{number(scalars[f"{label}_mean"], 2)} ± {number(scalars[f"{label}_std"], 2)}'
      for label in ('positive_iou', 'positive_centerness')
    )
    parts.append(
      paragraph(
        f'The true positives have an IoU of {iou} with their true box, and their '
        f'anchor points a centerness of {centerness} in it (mean ± standard '
        'deviation). These candidates turned out well; “Training” has the positives '
        "that were assigned, beside the paper's."
      )
    )
  return parts


def _sides(scalars: Mapping, arrays: Mapping, kind: str) -> list[str]:
  if not scalars['matched_detections']:
    return [paragraph('No detection matches a true box.')]
  note = (
    f'Box: {kind}. The sides of {scalars["matched_detections"]:,.0f} detections that '
    'match a true box (IoU of at least 0.5, score of at least 0.05): how well the '
    'distributions predict the annotated sides. A correct one has the annotation in '
    'its central 80 % interval in 80 % of the cases.'
  )
  coverage = [scalars[f'coverage_{level}'] for level in LEVELS]
  parts = [paragraph(note), wide(diagnostic_plots.spread_figure(arrays, coverage))]
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
