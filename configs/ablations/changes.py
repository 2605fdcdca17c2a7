"""The changes that rows are made of; each changes a config in place.

A change leaves all other values alone, so a base keeps its size, data, bin grid and
loss weights.
"""

from collections.abc import Callable
from fractions import Fraction

from ml_collections import ConfigDict

from gfl_jax.errors import UserError

Change = Callable[[ConfigDict], None]


def together(*changes: Change) -> Change:
  """One change that applies several in this order."""

  def change(c: ConfigDict) -> None:
    for part in changes:
      part(c)

  return change


# Assignment.


def atss(c: ConfigDict) -> None:
  """Assignment by ATSS, on the base's points."""
  c.assignment.kind = 'atss'


def fcos(c: ConfigDict) -> None:
  """Assignment by FCOS: points at the centers of cells, in the middle of a box.

  A level learns distances up to an anchor's side: 8 strides on the R-50 base, which
  gives FCOS's own 64, 128, 256 and 512 px. Distances start at the base's box.scale,
  half an anchor's side; FCOS's start at 1 stride.
  """
  c.assignment.update(kind='fcos', regress_range=float(c.points.anchor_scale))
  c.points.offset = 0.5


def max_iou(c: ConfigDict) -> None:
  """Assignment by RetinaNet's IoU thresholds, on anchors half as large as ATSS's.

  RetinaNet's smallest anchor has a side of 4 strides, ATSS's only anchor one of 8.
  Distances start at half of the anchor's side, as the base's do.
  """
  c.assignment.update(kind='max_iou', positive_iou=0.5, negative_iou=0.4)
  with c.points.ignore_type():  # half of an odd number is no int
    c.points.anchor_scale = c.points.anchor_scale / 2
  c.box.scale = c.box.scale / 2


# Score and class loss.


def focal(c: ConfigDict) -> None:
  """Focal loss; the box loss weighs by centerness, as in the code of ATSS and FCOS."""
  c.class_loss.update(kind='focal', alpha=0.25, gamma=2.0)
  c.box_loss.weighting = 'centerness'


def separate(kind: str) -> Change:
  """Focal loss for the class, and a quality branch of this kind (or 'none')."""

  def change(c: ConfigDict) -> None:
    c.score.kind = kind
    focal(c)

  return change


def gaussian_focal(c: ConfigDict) -> None:
  """No quality; CornerNet's focal loss with soft labels around each box center."""
  separate('none')(c)
  c.class_loss.update(kind='gaussian_focal', alpha=2.0, gamma=4.0, min_overlap=0.7)


def joint_qfl(beta: float) -> Change:
  """Class and quality in one score, trained by quality focal loss."""

  def change(c: ConfigDict) -> None:
    c.score.kind = 'joint'
    c.class_loss.update(kind='quality_focal', beta=beta)
    c.box_loss.weighting = 'class_score'

  return change


def joint_varifocal(c: ConfigDict) -> None:
  """Class and quality in one score, trained by varifocal loss."""
  joint_qfl(2.0)(c)
  c.class_loss.update(kind='varifocal', alpha=0.75, gamma=2.0)


# Boxes and their sides.


def dirac(c: ConfigDict) -> None:
  """Four distances for each anchor; the box loss alone."""
  c.box.kind = 'dirac'
  c.edge_loss.kind = 'none'


def gaussian(edge_loss: str) -> Change:
  """A mean and a variance for each side, trained by the edge loss only: no box loss.

  The weight 1 of the edge loss is our choice; the paper names none.
  """

  def change(c: ConfigDict) -> None:
    c.box.kind = 'gaussian'
    c.edge_loss.update(kind=edge_loss, weight=1.0)
    c.box_loss.weight = 0.0

  return change


def general(c: ConfigDict) -> None:
  """A distribution over the base's bins for each side; the box loss alone."""
  c.box.kind = 'general'
  c.edge_loss.kind = 'none'


def general_dfl(c: ConfigDict) -> None:
  """As `general`, but also trained by distribution focal loss."""
  general(c)
  c.edge_loss.kind = 'distribution_focal'


def bins(*, count: Fraction | int = 1, width: Fraction | int = 1) -> Change:
  """`count` times as many intervals between bins, each `width` times as wide.

  The change raises a ValueError if the number of intervals is not whole.
  """

  def change(c: ConfigDict) -> None:
    intervals = (c.box.num_bins - 1) * Fraction(count)
    if intervals.denominator != 1:
      raise UserError(
        f'{count} x the {c.box.num_bins - 1} intervals of box.num_bins='
        f'{c.box.num_bins} is not whole: give the base 1 more than a multiple of 16'
        ' bins (--set=box.num_bins=17)'
      )
    reach = (c.box.stop - c.box.start) * float(count * width)
    c.box.update(stop=c.box.start + reach, num_bins=int(intervals) + 1)

  return change


# The network.


def trunk(dtype: str) -> Change:
  """The type that backbone, pyramid and towers compute in."""

  def change(c: ConfigDict) -> None:
    c.model.dtype = dtype

  return change


# Whole systems.

gfl = together(atss, joint_qfl(2.0), general_dfl)
atss_baseline = together(atss, separate('centerness'), dirac)


# Decoding.


def variance_voting(c: ConfigDict) -> None:
  """KL-Loss's voting: a kept box becomes a mean of its neighbors, by their spread."""
  c.decode.variance_voting = 0.01


def uncertainty_penalty(c: ConfigDict) -> None:
  """Gaussian YOLOv3's score: multiplied by 1 minus the mean spread of the sides."""
  c.decode.uncertainty_penalty = True


def iou_guided_nms(c: ConfigDict) -> None:
  """IoU-Net's NMS: keeps the box of the highest predicted IoU, with the best score."""
  c.decode.nms = 'iou_guided'
