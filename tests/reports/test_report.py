import json
import os
import re
import subprocess
import sys

import jax
import numpy as np
import pytest

from gfl_jax.evaluation import diagnostics
from gfl_jax.files import read_json_lines
from gfl_jax.reports import plots, sample_sections
from gfl_jax.reports.diagnostic_sections import MEASURES
from gfl_jax.reports.report import MANY_CLAMPED, write_report
from tests.reports.html_text import Page

CONFIG = {
  'batch_size': 8,
  'data': {'name': 'coco_folder', 'path': 'x<y'},
  'assignment': {'kind': 'atss'},
  'score': {'kind': 'joint'},
  'class_loss': {'kind': 'quality_focal'},
  'box': {'kind': 'general'},
  'edge_loss': {'kind': 'distribution_focal'},
}
NAMES = ['<script>alert(1)</script>', 'rosé & 鳥 $x$', 'plain']


def train_line(step, **changes):
  line = {'kind': 'train', 'step': step, 'loss': 3.0 / step, 'loss_class': 1.0 / step}
  return line | {'learning_rate': 0.01, 'images_per_second': 40.0} | changes


def make_run(folder, *, lines=(), evaluated=True, num_detections=3):
  (folder / 'config.json').write_text(json.dumps(CONFIG))
  (folder / 'env.json').write_text(json.dumps({'versions': {'jax': '0.10.2'}}))
  text = ''.join(json.dumps(line) + '\n' for line in lines)
  (folder / 'metrics.jsonl').write_text(text)
  if evaluated:
    (folder / 'eval').mkdir()
    sizes = ('s', 'm', 'l')
    keys = ['AP', 'AP50', 'AP75', 'AR1', 'AR10', 'AR100']
    keys += [f'{kind}{size}' for kind in ('AP', 'AR') for size in sizes]
    metrics = {key: 0.25 for key in keys} | {'APl': None, 'AR1': float('nan')}
    metrics |= {'per_class': dict(zip(NAMES, (0.1, None, 0.875), strict=True))}
    metrics |= {'step': 20, 'num_images': 9, 'seconds': 1.0}
    metrics['diagnostics'] = write_diagnostics(folder / 'eval' / 'diagnostics.npz')
    (folder / 'eval' / 'metrics.json').write_text(json.dumps(metrics))
    write_samples(folder / 'eval' / 'samples.npz', num_detections)
  return folder


def write_diagnostics(path, kind='general', *, num_sides=40, branch=False):
  """Those of random sides and candidates, half of them positives; the scalars."""
  rng = np.random.default_rng(0)
  n = num_sides
  sides = lambda low, high: rng.uniform(low, high, (n, 4))
  dirac = kind == 'dirac'
  sample = rng.uniform(0, 1, (2 * n, 5))
  sample[:, 4] = np.arange(2 * n) % 2
  if not branch:
    sample[:, 1] = np.nan
  rows = {
    'pairs': np.array([[n * n / 4, n * n / 2, n * n]]),
    'positives': sample[1::2, [0, 2, 3, 3]],
    'negatives': np.array([[n, n / 4]]),
    'sample': sample,
    'detections': rng.uniform(0, 1, (n, 2)),
    'side_error': sides(-1, 1),
    'side_std': sides(0.1, 1),
    'side_cdf': np.full((n, 4), np.nan) if dirac else sides(0, 1),
    'side_density': np.full((n, 4), np.nan) if dirac else sides(0.1, 1),
    'side_crps': sides(0.1, 1),
    'side_px': np.full((n, 4), 8.0),
    'side_sigma': sides(1, 8),
    'side_kind': rng.integers(0, 2, (n, 4)),
    'side_extent': sides(16, 64),
  }
  scalars, arrays = diagnostics.summarize(rows, kind, ['faded', 'sharp $x$'])
  np.savez(path, **arrays)
  return scalars


def write_samples(path, num_detections):
  rng = np.random.default_rng(0)
  n = num_detections
  corner, side = rng.uniform(0, 30, (n, 2)), rng.uniform(8, 30, (n, 2))
  probabilities = rng.dirichlet(np.ones(9), (n, 4)).astype(np.float32)
  boxes = np.concatenate([corner, corner + side], -1).astype(np.float32)
  sample = {
    'image_id': 5,
    'image': rng.integers(0, 256, (48, 64, 3), np.uint8),
    'true_boxes': boxes[:1],
    'true_classes': np.zeros(len(boxes[:1]), np.int32),
    'boxes': boxes,
    'scores': np.linspace(0.9, 0.4, n, dtype=np.float32),
    'classes': np.arange(n) % 3,
    'edge_std': rng.uniform(0.5, 4, (n, 4)).astype(np.float32),
    'edge_positions': np.sort(rng.uniform(0, 64, (n, 4, 9)), -1).astype(np.float32),
    'edge_heights': probabilities,
    'strides': np.full(n, 8, np.float32),
  }
  np.savez(
    path,
    num_samples=1,
    class_names=np.array(NAMES),
    **{f'0/{key}': value for key, value in sample.items()},
  )


def change_samples(folder, **changes):
  path = folder / 'eval' / 'samples.npz'
  with np.load(path) as arrays:
    changed = dict(arrays)
  np.savez(path, **(changed | {f'0/{key}': value for key, value in changes.items()}))


def apart(n):
  """n boxes that do not touch."""
  corners = np.stack([8 * np.arange(n), 4 * np.ones(n)], -1)
  return np.concatenate([corners, corners + 6], -1).astype(np.float32)


def test_the_page_holds_the_run(tmp_path):
  lines = [train_line(step) for step in range(1, 31)]
  lines.append({'kind': 'eval', 'step': 20, 'AP': 0.2, 'AP50': None, 'AP75': 0.1})
  path = write_report(make_run(tmp_path, lines=lines))
  assert path == tmp_path / 'report.html'
  page = Page(path)
  assert all(name in page.text for name in NAMES)
  assert page.tags.count('img') == 2  # at most two edge figures of one image
  assert page.tags.count('figure') == 3
  texts = ('0.250', '0.875', 'versions.jax', '0.10.2', 'general', '30', '0 min 6 s')
  for text in texts:
    assert text in page.text


def test_the_page_loads_nothing_and_runs_nothing(tmp_path):
  page = Page(write_report(make_run(tmp_path, lines=[train_line(1), train_line(2)])))
  assert 'script' not in page.tags
  assert all(re.match('data:image/|#', address) for address in page.addresses)
  assert '@import' not in page.source
  assert set(re.findall(r'url\((.)', page.source)) <= {'#'}


def test_the_same_run_gives_the_same_page(tmp_path):
  make_run(tmp_path, lines=[train_line(1), train_line(2)])
  first = write_report(tmp_path).read_bytes()
  assert write_report(tmp_path).read_bytes() == first


def test_a_page_compiles_nothing(tmp_path, caplog):
  # Every image has another number of boxes: jax would compile for each of them anew.
  make_run(tmp_path, num_detections=7)
  with jax.log_compiles():
    write_report(tmp_path)
  assert not [record for record in caplog.records if 'ompiling' in record.getMessage()]


def test_a_run_without_evaluation_or_steps(tmp_path):
  page = Page(write_report(make_run(tmp_path, evaluated=False)))
  assert page.text.count('Not evaluated yet.') == 5
  assert 'No step is logged yet.' in page.text
  (tmp_path / 'env.json').unlink()
  (tmp_path / 'metrics.jsonl').unlink()
  assert 'no env.json' in Page(write_report(tmp_path)).text


def test_an_evaluation_without_detections(tmp_path):
  page = Page(write_report(make_run(tmp_path, num_detections=0)))
  assert 'No detection scores 0.3 or more.' in page.text


def test_numbers_that_are_not_finite_leave_gaps(tmp_path):
  lines = [train_line(1), train_line(2, loss=float('nan')), train_line(3, loss=0.0)]
  del lines[0]['images_per_second']
  page = Page(write_report(make_run(tmp_path, lines=lines)))
  assert 'nan' not in page.text.lower()


def test_a_step_logged_twice_counts_once(tmp_path):
  lines = [train_line(10), train_line(20), train_line(20, images_per_second=80.0)]
  page = Page(write_report(make_run(tmp_path, lines=lines)))
  assert '0 min 3 s' in page.text  # 80 images at 40 per second and 80 at 80


def test_half_a_line_of_a_killed_run_is_left_out(tmp_path):
  lines = [train_line(10), train_line(20)]
  make_run(tmp_path, lines=lines, evaluated=False)
  log = tmp_path / 'metrics.jsonl'
  first, last = log.read_text().splitlines()
  log.write_text(f'{first}\n{{"kind": "tr\n{last}\n{{"kind": "eval", "ste')
  assert read_json_lines(log) == lines
  assert '0 min 4 s' in Page(write_report(tmp_path)).text
  log.unlink()
  assert read_json_lines(log) == []


def test_of_detections_at_one_place_the_best_gets_a_figure(tmp_path):
  make_run(tmp_path)
  # The second best is the broadest of all, but nearly the best one's box.
  boxes = np.array([[4, 4, 24, 24], [4, 4, 29, 24], [40, 4, 60, 24]], np.float32)
  deviations = np.ones((3, 4), np.float32)
  deviations[1] = (0, 30, 0, 0)
  change_samples(tmp_path, boxes=boxes, true_boxes=boxes, edge_std=deviations)
  text = Page(write_report(tmp_path)).text
  assert 'score 0.90' in text and 'score 0.40' in text
  assert 'score 0.65' not in text


def test_detections_of_a_true_box_come_first(tmp_path):
  make_run(tmp_path)
  boxes, deviations = apart(3), np.ones((3, 4), np.float32)
  deviations[0, 0] = 30.0  # by far the most ambiguous, but of nothing
  change_samples(tmp_path, boxes=boxes, true_boxes=boxes[1:], edge_std=deviations)
  text = Page(write_report(tmp_path)).text
  assert 'score 0.65' in text and 'score 0.40' in text
  assert 'score 0.90' not in text
  assert ' · no object here' not in text
  change_samples(tmp_path, true_boxes=boxes[2:])
  text = Page(write_report(tmp_path)).text
  assert 'score 0.90, image 5 · no object here' in text
  assert 'score 0.40, image 5 · no object here' not in text


def test_ambiguous_and_sharp_figures_have_their_headings(tmp_path):
  make_run(tmp_path, num_detections=2)
  assert 'Sharpest' not in Page(write_report(tmp_path)).text
  path = tmp_path / 'eval' / 'samples.npz'
  with np.load(path) as arrays:
    one = {key[2:]: arrays[key] for key in arrays if key.startswith('0/')}
    shared = {key: arrays[key] for key in arrays if not key.startswith('0/')}
  one['boxes'] = one['true_boxes'] = apart(2)
  images = {}
  for i in range(4):
    one['edge_std'] = np.ones((2, 4), np.float32)
    one['edge_std'][:, 0] += 4 if i < 3 else 0  # the last image is clear on all sides
    images |= {f'{i}/{k}': v for k, v in (one | {'image_id': 60 + i}).items()}
  np.savez(path, **(shared | {'num_samples': 4} | images))
  text = Page(write_report(tmp_path)).text
  ambiguous, sharpest = text.split('Most ambiguous')[1].split('Sharpest')
  assert re.findall(r'image (\d+)', ambiguous) == ['60', '60', '61', '61', '62', '62']
  assert re.findall(r'image (\d+)', sharpest.split('Machine')[0]) == ['63', '63']


@pytest.mark.parametrize(('num_boxes', 'num_labels'), [(10, 10), (11, 0)])
def test_many_boxes_keep_their_names_but_no_labels(num_boxes, num_labels):
  sample = {
    'image': np.zeros((420, 420, 3), np.uint8),
    'boxes': apart(num_boxes)[:, [1, 0, 3, 2]] * 4,  # one below the other
    'true_boxes': np.zeros((0, 4)),
    'classes': np.zeros(num_boxes, int),
    'scores': np.full(num_boxes, 0.5),
  }
  svg = sample_sections.annotated_image(sample, ['a'], list(range(num_boxes)))
  assert svg.count('<title>a 0.50</title>') == num_boxes
  assert svg.count('<text') == num_labels


def test_step_axes_start_at_zero(monkeypatch):
  drawn = []
  monkeypatch.setattr(plots, 'svg', lambda figure: drawn.extend(figure.axes) or '')
  plots.ap_curves([{'step': 500, 'AP': 0.1}, {'step': 1000, 'AP': 0.2}])
  plots.training_curves([train_line(50), train_line(100)])
  assert [axes.get_xlim()[0] for axes in drawn] == [0, 0, 0, 0]


def test_a_folder_that_is_no_run(tmp_path):
  with pytest.raises(FileNotFoundError, match='not the folder of a run'):
    write_report(tmp_path)


@pytest.mark.parametrize('backend', ['inline', 'svg'])
def test_the_backend_of_a_notebook_is_not_needed_and_not_changed(backend):
  code = (
    'import gfl_jax.reports.plots, matplotlib, os\n'
    'print(os.environ["MPLBACKEND"], dict.get(matplotlib.rcParams, "backend") == "svg")'
  )
  done = subprocess.run(
    [sys.executable, '-c', code],
    env=os.environ | {'MPLBACKEND': backend},
    capture_output=True,
    text=True,
  )
  assert done.stdout.split() == [backend, str(backend == 'svg')], done.stderr


def test_figures_leave_matplotlibs_settings_alone():
  import matplotlib

  before = dict(matplotlib.rcParams)
  plots.training_curves([train_line(1), train_line(2)])
  assert dict(matplotlib.rcParams) == before


def change_diagnostics(folder, **arguments):
  path = folder / 'eval' / 'metrics.json'
  scalars = write_diagnostics(folder / 'eval' / 'diagnostics.npz', **arguments)
  path.write_text(json.dumps(json.loads(path.read_text()) | {'diagnostics': scalars}))
  changed = CONFIG | {'box': {'kind': arguments.get('kind', 'general')}}
  changed['score'] = {'kind': 'iou' if arguments.get('branch') else 'none'}
  (folder / 'config.json').write_text(json.dumps(changed))
  return Page(write_report(folder)).text


def test_the_diagnostics_have_their_meaning_beside_them(tmp_path):
  levels = {f'coverage_{level}' for level in diagnostics.LEVELS}
  assert levels <= MEASURES['others'].keys()
  text = Page(write_report(make_run(tmp_path))).text
  score, sides = text.split('Is the score the quality?')[1].split('Do the distrib')
  assert '40 true positives' in score and '40 true negatives' in score
  assert 'outranking_negatives0.250' in score.replace('\n', '')
  assert 'negatives_above_a_positive0.250' in score.replace('\n', '')
  assert 'class_score' not in score
  labels = re.search(
    r'an IoU of 0.\d\d ± 0.\d\d .* a centerness of 0.\d\d ± 0.\d\d', score
  )
  assert labels
  assert 'Box: general' in sides and 'sides of 40 detections' in sides
  assert 'sharp $x$' in sides and 'constant_std' not in sides


@pytest.mark.parametrize('kind', ['dirac', 'gaussian', 'general'])
@pytest.mark.parametrize('branch', [False, True])
def test_diagnostics_of_every_representation(tmp_path, kind, branch):
  make_run(tmp_path)
  text = change_diagnostics(tmp_path, kind=kind, branch=branch)
  assert ('outranking_negatives_class_score0.500' in text) == branch
  assert ('constant_std' in text) == (kind == 'dirac')
  assert ('spread_correlation' in text) == (kind != 'dirac')
  assert 'nan' not in text.lower()


def test_diagnostics_of_nothing(tmp_path):
  make_run(tmp_path)
  text = change_diagnostics(tmp_path, num_sides=0)
  assert 'There is no candidate.' in text
  assert 'No detection matches a true box.' in text


def test_the_labels_of_the_positives_stand_beside_the_papers(tmp_path):
  labels = {'positive_iou': 0.71, 'positive_iou_std': 0.2}
  labels |= {'positive_centerness': 0.5, 'positive_centerness_std': 0.125}
  lines = [train_line(10), train_line(20, **labels)]
  text = Page(write_report(make_run(tmp_path, lines=lines))).text
  assert '0.71 ± 0.20 (GFL, ResNet-50, COCO: 0.84 ± 0.14)' in text
  assert 'centerness 0.50 ± 0.12 (GFL, ResNet-50, COCO: 0.64 ± 0.18)' in text


def test_sides_without_a_distribution_are_lines(tmp_path):
  make_run(tmp_path)
  change_samples(
    tmp_path,
    edge_std=np.zeros((3, 4), np.float32),
    edge_positions=np.full((3, 4, 1), 20.0),
    edge_heights=np.ones((3, 4, 1)),
  )
  text = Page(write_report(tmp_path)).text
  assert 'Lines of full height' in text and 'Most ambiguous' not in text


@pytest.mark.parametrize('share', [0.02, 0.4])
def test_many_sides_beyond_their_bins_are_reported(tmp_path, share):
  run = make_run(tmp_path, lines=[train_line(10, clamped_targets=share)])
  text = write_report(run).read_text()
  assert ('40% of the sides' in text) == (share > MANY_CLAMPED)
