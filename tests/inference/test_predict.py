"""scripts/predict.py: which images it takes, and what it leaves behind."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

import gfl_jax
from gfl_jax.inference import image_files, result_files
from tests.inference import small_run

SCRIPT = pathlib.Path(__file__).parents[2] / 'scripts' / 'predict.py'


def save(path, size=(48, 64), seed=0):
  path.parent.mkdir(parents=True, exist_ok=True)
  pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
  Image.fromarray(pixels).save(path)
  return path


def names(files):
  return [file.name for file in files]


@pytest.fixture
def photos(tmp_path):
  folder = tmp_path / 'photos'
  for name in ('b.jpg', 'a.PNG', 'deep/er/b.jpg', '.hidden/c.jpg', '.d.jpg'):
    save(folder / name)
  (folder / 'notes.txt').write_text('none')
  return folder


def test_a_folder_has_all_images_below_it(photos, tmp_path):
  found = image_files.find([str(photos)], leave_out=tmp_path / 'out')
  assert names(found) == ['a', 'b', 'deep/er/b']
  assert [file.path for file in found] == [
    photos / name for name in ('a.PNG', 'b.jpg', 'deep/er/b.jpg')
  ]


def test_a_folder_gives_every_kind_of_image_and_says_what_it_passed_over(
  photos, tmp_path, caplog
):
  caplog.set_level('INFO', logger='gfl_jax')
  pixels = Image.new('RGB', (8, 8))
  for name in ('e.tga', 'f.JFIF', 'g.webp', 'h.dib', 'j.ppm', 'k.avif', 'l.ico'):
    pixels.save(photos / name, 'jpeg' if name == 'f.JFIF' else None)
  pixels.save(photos / 'm', 'png')  # without a suffix
  (photos / 'n.png').write_text('damaged: predict names it')
  (photos / 'linked.jpg').symlink_to(photos / 'b.jpg')
  (photos / 'video.mpg').write_bytes(b'\x00\x00\x01\xb3')
  found = image_files.find([str(photos)], leave_out=tmp_path / 'out')
  single = [*'ab', 'deep/er/b', *'efghjklmn']  # a link to b is b
  assert names(found) == single
  assert 'skipped 2 files' in caplog.text and 'notes.txt' in caplog.text


def test_what_is_hidden_is_said_and_links_to_folders_are_followed(
  photos, tmp_path, caplog
):
  caplog.set_level('INFO', logger='gfl_jax')
  save(tmp_path / 'other/o.jpg')
  (photos / 'linked').symlink_to(tmp_path / 'other')
  (photos / 'deep/loop').symlink_to(photos)
  (photos / 'gone.jpg').symlink_to(photos / 'nothing.jpg')
  found = image_files.find([str(photos)], leave_out=tmp_path / 'out')
  assert names(found) == ['a', 'b', 'deep/er/b', 'linked/o']
  assert '2 files, hidden: .hidden, .d.jpg' in caplog.text
  assert '2 files, no images: gone.jpg, notes.txt' in caplog.text


def test_folders_that_exist_are_no_pattern(tmp_path):
  save(tmp_path / 'lr[0.1]' / 'a.jpg')
  found = image_files.find([f'{tmp_path}/lr[0.1]/*.jpg'], leave_out=tmp_path / 'out')
  assert names(found) == ['a']


def test_patterns_reach_files_and_folders(photos, tmp_path):
  found = image_files.find([f'{photos}/**/*.jpg'], leave_out=tmp_path / 'out')
  assert names(found) == ['b', 'b-2']
  found = image_files.find([f'{photos}/d*'], leave_out=tmp_path / 'out')
  assert names(found) == ['er/b']


def test_a_file_whose_name_looks_like_a_pattern_is_a_file(tmp_path):
  file = save(tmp_path / 'image[1].jpg')
  assert names(image_files.find([str(file)], leave_out=tmp_path / 'out')) == [
    'image[1]'
  ]


def test_a_file_is_taken_once_and_no_name_twice(photos, tmp_path):
  other = save(tmp_path / 'other' / 'B.png')
  given = [photos / 'b.jpg', photos, other, tmp_path / 'photos' / '..' / 'photos/a.PNG']
  found = image_files.find(map(str, given), leave_out=tmp_path / 'out')
  assert names(found) == ['b', 'a', 'deep/er/b', 'B-2']


def test_a_folder_never_has_the_name_of_a_picture(tmp_path):
  for name in ('x.png', 'x.jpg/a.png', 'x.JPG_/a.png', 'b.jpg/c.jpg/d.jpg'):
    save(tmp_path / 'photos' / name)
  found = image_files.find([str(tmp_path / 'photos')], leave_out=tmp_path / 'out')
  assert sorted(names(found)) == ['b.jpg_/c.jpg_/d', 'x', 'x.JPG_/a', 'x.jpg_/a-2']


def test_earlier_results_are_no_images(photos):
  save(photos / 'out' / 'pictures' / 'b.jpg')
  found = image_files.find([str(photos)], leave_out=photos / 'out')
  assert names(found) == ['a', 'b', 'deep/er/b']


@pytest.mark.parametrize(
  'given, error, says',
  [
    ([], ValueError, 'no images given'),
    (['empty'], ValueError, 'no image in empty'),
    (['nothing.jpg'], FileNotFoundError, 'nothing.jpg does not exist'),
    (['*.jpg'], FileNotFoundError, r"'\*.jpg'"),
  ],
)
def test_inputs_without_an_image_are_an_error(
  given, error, says, tmp_path, monkeypatch
):
  (tmp_path / 'empty').mkdir()
  monkeypatch.chdir(tmp_path)
  with pytest.raises(error, match=says):
    image_files.find(given, leave_out='out')


def predict(*arguments):
  return subprocess.run(
    [sys.executable, SCRIPT, *map(str, arguments)], capture_output=True, text=True
  )


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  return small_run.write(tmp_path_factory.mktemp('parent') / 'run')


def test_a_picture_each_and_json_that_pycocotools_reads(run, tmp_path):
  photos, out = tmp_path / 'photos', tmp_path / 'new' / 'out'
  sizes = {'a/x.png': (48, 64), 'b/x.jpg': (600, 300), 'c.png': (1, 1)}
  for seed, (name, size) in enumerate(sizes.items()):
    save(photos / name, size, seed)
  (photos / 'b' / 'cut.jpg').write_bytes((photos / 'b/x.jpg').read_bytes()[:900])
  (photos / 'b' / 'text.png').write_text('no picture')

  done = predict(
    f'--model={run}', photos, f'--out={out}', '--batch_size=2', '--min_score=0.2'
  )
  assert done.returncode == 1
  errors = done.stderr[done.stderr.index('error: ') :]
  assert errors.startswith('error: 2 of 5 images were skipped:\n')
  assert f'{photos}/b/cut.jpg cannot be decoded' in errors
  assert f'{photos}/b/text.png is not an image file' in errors
  assert 'Traceback' not in done.stderr

  data_set = json.loads((out / 'images.json').read_text())
  written = json.loads((out / 'detections.json').read_text())
  assert [image['file_name'] for image in data_set['images']] == [
    str(photos / name) for name in sizes
  ]
  pictures = [out / image['picture'] for image in data_set['images']]
  assert sorted(pictures) == sorted(out.rglob('*.jpg'))
  for (height, width), picture, image in zip(
    sizes.values(), pictures, data_set['images'], strict=True
  ):
    assert (image['height'], image['width']) == (height, width)
    zoom = min(max(480 // max(height, width), 1), 8)
    with Image.open(picture) as opened:
      assert opened.size == (width * zoom, height * zoom)

  expected = gfl_jax.load(run).predict([photos / name for name in sizes])
  ids = [image['id'] for image in data_set['images']]
  loaded = COCO(out / 'images.json').loadRes(str(out / 'detections.json'))
  for image_id, found in zip(ids, expected, strict=True):
    mine = [one for one in written if one['image_id'] == image_id]
    assert len(loaded.getAnnIds([image_id])) == len(mine) == len(found)
    corners = np.array([one['bbox'] for one in mine])
    corners[:, 2:] += corners[:, :2]
    np.testing.assert_allclose(corners, found.boxes, atol=0.02)
    np.testing.assert_allclose([one['score'] for one in mine], found.scores, atol=1e-5)
    spreads = [one['edge_std'] for one in mine]
    np.testing.assert_allclose(spreads, found.edge_std, atol=0.01)
  categories = [(x['id'], x['name']) for x in data_set['categories']]
  assert categories == list(zip(small_run.IDS, small_run.NAMES, strict=True))

  drawn = sum((found.scores >= 0.2).sum() for found in expected)
  last = done.stdout.splitlines()[-1]
  assert last.startswith(f'{out}: 3 pictures with {drawn} boxes of score 0.2 or more')
  assert last.endswith(f'has all {len(written)}')
  assert (run.parent / '.compilation_cache').is_dir()


def test_what_was_found_before_a_failure_is_written(run, tmp_path):
  photos, out = tmp_path / 'photos', tmp_path / 'out'
  for name in ('a.png', 'b.png', 'c.png'):
    save(photos / name)
  save(out / 'pictures' / 'earlier.jpg')
  (out / 'pictures' / 'b.jpg').mkdir()  # so that b cannot be written
  done = predict(f'--model={run}', photos, f'--out={out}')
  assert done.returncode == 1 and 'Traceback' not in done.stderr
  assert 'b.jpg' in done.stderr
  last = done.stdout.splitlines()[-1]
  assert last.startswith(f'Interrupted. {out}: 1 pictures with ')
  assert last.endswith('; 1 other pictures were there before')
  data_set = json.loads((out / 'images.json').read_text())
  assert [image['picture'] for image in data_set['images']] == ['pictures/a.jpg']
  written = json.loads((out / 'detections.json').read_text())
  assert written and {one['image_id'] for one in written} == {1}


@pytest.mark.parametrize('out', ['file', 'file/below'])
def test_a_file_cannot_be_the_folder_of_results(out, tmp_path):
  (tmp_path / 'file').touch()
  with pytest.raises(ValueError, match=f'--out={tmp_path / out}: .*file is a file'):
    result_files.check_out(tmp_path / out)


def test_wrong_words_are_one_line(run, tmp_path):
  photo = save(tmp_path / 'x.png')
  done = predict(f'--model={tmp_path}', photo, f'--out={tmp_path}/out')
  assert done.returncode == 1 and 'Traceback' not in done.stderr
  assert f'error: {tmp_path} is neither the folder of a run' in done.stderr
  assert not (tmp_path / 'out').exists()
