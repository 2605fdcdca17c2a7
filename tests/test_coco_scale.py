"""The COCO-scale dry run, on a small data set."""

import json

import numpy as np
import pytest
from PIL import Image

from gfl_jax.data import coco_json
from scripts.benchmarks import coco_scale_parts


@pytest.fixture
def photographs(tmp_path):
  """Five images, one of them portrait, with two objects each."""
  folder = tmp_path / 'photographs'
  (folder / 'images').mkdir(parents=True)
  (folder / 'annotations').mkdir()
  names = zip(coco_json.COCO_CATEGORY_IDS, coco_json.COCO_NAMES, strict=True)
  categories = [{'id': i, 'name': name} for i, name in names]
  images, annotations = [], []
  for number in range(5):
    width, height = (48, 64) if number == 1 else (64, 48)
    pixels = np.full((height, width, 3), 40 * number, np.uint8)
    Image.fromarray(pixels).save(folder / 'images' / f'{number}.jpg')
    size = {'width': width, 'height': height}
    images.append({'id': number, 'file_name': f'{number}.jpg', **size})
    for category in (1, 90):
      box = {'bbox': [4, 5, 20, 20], 'area': 400, 'iscrowd': 0}
      ids = {'id': len(annotations), 'image_id': number, 'category_id': category}
      annotations.append(box | ids)
  content = {'images': images, 'annotations': annotations, 'categories': categories}
  (folder / 'annotations' / 'instances_train.json').write_text(json.dumps(content))
  return folder


def test_a_preparation_is_killed_continued_and_read(photographs, tmp_path):
  folder = tmp_path / 'all'
  folder.mkdir()
  counts = {'train2017': 3000, 'val2017': 7}
  dry_run = coco_scale_parts.DryRun(photographs, folder, counts, batches=1)
  lines = {line.pop('part'): line for line in coco_scale_parts.run_parts(dry_run)}
  assert list(lines) == list(coco_scale_parts.PARTS)
  assert lines['zips']['images'] == counts
  assert lines['zips']['annotations'] == {k: 2 * n for k, n in counts.items()}
  assert lines['killed']['exit_status'] == -9
  assert not lines['killed']['taken_for_finished']
  assert lines['prepared']['shards_before'] == lines['killed']['shards'] >= 1
  assert lines['prepared']['exit_status'] == lines['verified']['exit_status'] == 0
  epoch = lines['epoch']
  # 2,400 landscape images in batches of 128 are 19, 600 portrait ones 5.
  assert (epoch['images'], epoch['seen'], epoch['steps']) == (3000, 3000, 24)
  assert epoch['seen_again'] == 24 * 128 - 3000
  assert lines['read']['images_per_s'] > 0 and len(lines['read']['resident_mb']) == 10
