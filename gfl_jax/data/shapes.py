"""`ambiguous_shapes`: the scenes of scenes.py as a TFDS builder.

The features are those of coco/2017 plus, for each object, `edge_sigma` (std of the
annotated sides, pixels) and `edge_kind`, both in l, t, r, b order.

  builder = AmbiguousShapes(data_dir='datasets', config=ShapesConfig(num_train=2000))
"""

import dataclasses
import io
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from gfl_jax.data import coco_records, scenes, terminal
from gfl_jax.errors import UserError


@dataclasses.dataclass(eq=False)
class ShapesConfig(tfds.core.BuilderConfig):
  """How many scenes are drawn; the name holds all that the data depend on."""

  name: str = ''
  num_train: int = 2000
  num_validation: int = 400
  size: int = 128
  seed: int = 0

  def __post_init__(self):
    for field in ('num_train', 'num_validation'):
      if getattr(self, field) < 1:
        raise UserError(f'{field}={getattr(self, field)} must be at least 1')
    self.name = (
      f'train{self.num_train}_validation{self.num_validation}_'
      f'size{self.size}_seed{self.seed}'
    )


class AmbiguousShapes(tfds.core.GeneratorBasedBuilder):
  """Textured shapes whose box sides have a known uncertainty; needs a ShapesConfig."""

  # Raise it with every change of scenes.py, so that older scenes are not used again.
  VERSION = tfds.core.Version('1.0.0')
  # Nothing is downloaded; TFDS's own look-up needs a package that it does not require.
  url_infos: ClassVar = {}
  builder_config: ShapesConfig

  def _info(self) -> tfds.core.DatasetInfo:
    size = self.builder_config.size
    return tfds.core.DatasetInfo(
      builder=self,
      description=scenes.__doc__,
      features=coco_records.features(
        scenes.CLASS_NAMES,
        image=tfds.features.Image(shape=(size, size, 3), encoding_format='jpeg'),
        edge_kind=tfds.features.Tensor(shape=(4,), dtype=np.int64),
        edge_sigma=tfds.features.Tensor(shape=(4,), dtype=np.float32),
      ),
    )

  def _split_generators(self, dl_manager) -> dict[str, Any]:
    config = self.builder_config
    return {
      'train': self._generate_examples(0, config.num_train),
      'validation': self._generate_examples(1, config.num_validation),
    }

  def _generate_examples(
    self, split: int, count: int
  ) -> Iterator[tuple[int, dict[str, Any]]]:
    config = self.builder_config
    for index in terminal.progress_bar(count, 'drawing scenes', 'scene', range(count)):
      scene = scenes.draw_scene((config.seed, split, index), config.size)
      file = io.BytesIO()
      Image.fromarray(scene.image).save(file, 'jpeg', quality=95, subsampling=0)
      file.seek(0)
      # Ids start at 1 and differ between the splits.
      image_id = split * config.num_train + index + 1
      objects = [
        {
          'area': int((x1 - x0) * (y1 - y0)),
          'bbox': np.array([y0, x0, y1, x1]) / config.size,
          'edge_kind': scene.edge_kind[row],
          'edge_sigma': scene.edge_sigma[row].astype(np.float32),
          'id': image_id * 100 + row,
          'is_crowd': False,
          'label': int(scene.labels[row]),
        }
        for row, (x0, y0, x1, y1) in enumerate(scene.boxes)
      ]
      yield (
        image_id,
        {
          'image': file,
          'image/filename': f'{image_id:08d}.jpg',
          'image/id': image_id,
          'objects': objects,
        },
      )
