"""What the score of a detection is: the six kinds of score, as a table.

Head, objective and decoding read this one table. A kind is a measure of quality and the
use that is made of it:

  none               class probability alone
  centerness, iou    a separate branch learns the quality of positives; score = class
                     probability x quality (FCOS, ATSS; GFL's IoU branch)
  centerness_guided, iou_guided
                     no branch: the quality of a positive weights its class loss
  joint              the class target of a positive is the quality itself (GFL)

Source: arXiv:2006.04388, table 1a and figure 6.
"""

from typing import NamedTuple


class Score(NamedTuple):
  """One kind of score.

  Attributes:
    quality: of a positive anchor: 'centerness' of its point in the true box, 'iou' of
      its decoded box with the true box, or None.
    use: 'none', 'branch' (learned by quality_logits), 'weight' (of the positive's class
      loss) or 'target' (of the class score).
  """

  quality: str | None
  use: str


SCORES = {
  'none': Score(None, 'none'),
  'centerness': Score('centerness', 'branch'),
  'iou': Score('iou', 'branch'),
  'centerness_guided': Score('centerness', 'weight'),
  'iou_guided': Score('iou', 'weight'),
  'joint': Score('iou', 'target'),
}
