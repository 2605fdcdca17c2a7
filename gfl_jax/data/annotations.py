"""The boxes of a split, as arrays, and the same as COCO's json."""

import dataclasses
from typing import Any

import numpy as np

from gfl_jax.data.scenes import EDGE_KINDS
from gfl_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Annotations:
  """N images with M boxes; image i has the boxes starts[i]:starts[i + 1].

  Attributes:
    image_ids: [N] int64.
    sizes: [N, 2] int32 original (h, w).
    starts: [N + 1] int64.
    boxes: [M, 4] float32 xyxy in original pixels, as annotated.
    labels: [M] int32 in 0..C-1.
    is_crowd: [M] bool.
    areas: [M] float32 in square original pixels, as annotated.
    edge_sigma: [M, 4] float32 (l, t, r, b): std of the annotated sides in original
      pixels; NaN where unknown.
    edge_kind: [M, 4] int8, index into scenes.EDGE_KINDS; -1 where unknown.
  """

  image_ids: np.ndarray
  sizes: np.ndarray
  starts: np.ndarray
  boxes: np.ndarray
  labels: np.ndarray
  is_crowd: np.ndarray
  areas: np.ndarray
  edge_sigma: np.ndarray
  edge_kind: np.ndarray

  def __len__(self) -> int:
    return len(self.image_ids)

  @property
  def owner(self) -> np.ndarray:
    """[M] position of each box's image."""
    return np.repeat(np.arange(len(self)), np.diff(self.starts))

  def box_rows(self, images: np.ndarray) -> np.ndarray:
    """Rows of the boxes of the images at these positions, image by image."""
    counts = self.starts[images + 1] - self.starts[images]
    shifts = self.starts[images + 1] - np.cumsum(counts)
    return np.arange(counts.sum()) + np.repeat(shifts, counts)

  def select(self, keep: np.ndarray) -> 'Annotations':
    """The annotations of only the images at positions `keep` [n], in that order."""
    rows = self.box_rows(keep)
    per_box = ('boxes', 'labels', 'is_crowd', 'areas', 'edge_sigma', 'edge_kind')
    return Annotations(
      image_ids=self.image_ids[keep],
      sizes=self.sizes[keep],
      starts=np.concatenate([[0], np.cumsum(np.diff(self.starts)[keep])]),
      **{name: getattr(self, name)[rows] for name in per_box},
    )

  def check_labels(self, num_classes: int) -> None:
    """Raises a UserError if a label is not in 0..num_classes - 1."""
    wrong = np.flatnonzero((self.labels < 0) | (self.labels >= num_classes))
    if wrong.size:
      image = self.image_ids[self.owner[wrong[0]]]
      raise UserError(
        f'label {self.labels[wrong[0]]} of image {image} is outside'
        f' 0..{num_classes - 1}'
      )

  def look_like_shares(self) -> np.ndarray:
    """[M] bool: the box lies within its image's first pixel.

    Such a box was probably given in shares of the image's size instead of pixels.
    """
    with np.errstate(invalid='ignore'):  # of nan
      # TFDS may give 1 px back as slightly more.
      return np.all(self.boxes[:, 2:] > 0, -1) & np.all(self.boxes <= 1 + 1e-3, -1)

  def to_coco(
    self, class_names: tuple[str, ...], category_ids: tuple[int, ...]
  ) -> dict[str, list[dict[str, Any]]]:
    """The content of a COCO json, in original pixels.

    Boxes without an area are left out: no detection can match them. `edge_sigma`
    (l, t, r, b in pixels) and `edge_kind` (four of scenes.EDGE_KINDS) are included
    where they are known.

    Args:
      class_names: the name of each label.
      category_ids: the id of each label.
    """
    annotations = []
    for row, owner in enumerate(self.owner):
      x0, y0, x1, y1 = self.boxes[row].tolist()
      if not (x1 > x0 and y1 > y0):
        continue
      annotation = {
        'id': len(annotations) + 1,
        'image_id': int(self.image_ids[owner]),
        'category_id': category_ids[self.labels[row]],
        'bbox': [x0, y0, x1 - x0, y1 - y0],
        'area': float(self.areas[row]),
        'iscrowd': int(self.is_crowd[row]),
      }
      if np.isfinite(self.edge_sigma[row]).all():
        annotation['edge_sigma'] = self.edge_sigma[row].tolist()
      if (self.edge_kind[row] >= 0).all():
        annotation['edge_kind'] = [EDGE_KINDS[kind] for kind in self.edge_kind[row]]
      annotations.append(annotation)
    sizes = zip(self.image_ids.tolist(), self.sizes.tolist(), strict=True)
    names = zip(category_ids, class_names, strict=True)
    return {
      'images': [{'id': i, 'height': h, 'width': w} for i, (h, w) in sizes],
      'annotations': annotations,
      'categories': [{'id': int(i), 'name': name} for i, name in names],
    }
