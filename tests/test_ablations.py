"""Every row of every table: it builds on every base, and is what the paper had."""

import itertools
import json
import pathlib
import subprocess
import sys

import pytest
from absl import flags
from ml_collections import config_flags

from configs.ablations import changes, table
from gfl_jax.errors import UserError
from gfl_jax.training.config_checks import check_config
from tests import tiny

STUDIES = {name: table.load_study(name) for name in table.studies()}
ALL_ROWS = [(name, row) for name, study in STUDIES.items() for row in study.ROWS]
PAPER_TABLES = {
  'score': ('1a', 12),
  'detectors': ('1b', 4),
  'beta': ('1c', 5),
  'representation': ('2a', 8),
  'bins': ('2b', 4),
  'bin_width': ('2c', 4),
  'bin_width_count': ('2c', 4),
  'contributions': ('3', 4),
  'class_loss': ('', 5),
  'uncertainty': ('', 9),
  'precision': ('', 2),
}


def values(study, row, base='demo_shapes'):
  return STUDIES[study].get_config(f'{row}@{base}').to_dict()


def test_every_table_is_there_with_its_rows_and_a_baseline_among_them():
  found = {name: (s.TABLE, len(s.ROWS)) for name, s in STUDIES.items()}
  assert found == PAPER_TABLES
  for study in STUDIES.values():
    assert study.BASELINE in study.ROWS
    assert study.ROWS[study.BASELINE].baseline in (None, study.BASELINE)
    assert {row.baseline for row in study.ROWS.values()} <= {None, *study.ROWS}
    assert study.TITLE and study.QUESTION.endswith('?')
    assert isinstance(study.NOTES, str)
    rows_of_paper = [row for row in study.ROWS.values() if row.paper]
    assert len(rows_of_paper) == len(study.ROWS) or not study.TABLE
  assert {name for name, study in STUDIES.items() if study.TABLE} == set(PAPER)


@pytest.mark.parametrize('base', table.bases())
def test_every_row_can_run_on_every_base(base):
  for study, row in ALL_ROWS:
    config = STUDIES[study].get_config(f'{row}@{base}')
    check_config(config)


@pytest.mark.parametrize('study', STUDIES)
def test_no_two_rows_of_a_study_are_the_same(study):
  configs = [values(study, row) for row in STUDIES[study].ROWS]
  for one, other in itertools.combinations(configs, 2):
    assert one != other


@pytest.mark.parametrize('base', table.bases())
def test_gfl_is_the_base_itself_value_for_value(base):
  recipe = table.base_config(base).to_dict()
  same = [('contributions', 'both'), ('bins', '16'), ('bin_width', '1')]
  same.append(('bin_width_count', '1'))
  assert [values(*row, base) for row in same] == [recipe] * 4


def test_rows_of_several_tables_that_mean_the_same_are_the_same():
  for same in (
    [
      ('contributions', 'none'),
      ('score', 'atss_centerness'),
      ('representation', 'atss_dirac'),
      ('uncertainty', 'dirac'),
    ],
    [
      ('contributions', 'qfl'),
      ('score', 'atss_joint'),
      ('beta', '2'),
      ('class_loss', 'quality_focal'),
    ],
    [
      ('contributions', 'dfl'),
      ('representation', 'atss_general_dfl'),
      ('uncertainty', 'general_dfl'),
    ],
    [('representation', 'atss_gaussian'), ('uncertainty', 'gaussian_nll')],
    [('score', 'atss_none'), ('class_loss', 'focal')],
    [('score', 'atss_iou'), ('class_loss', 'focal_iou'), ('uncertainty', 'iou')],
    [('score', 'fcos_centerness'), ('representation', 'fcos_dirac')],
  ):
    first, *others = [values(*row) for row in same]
    assert all(other == first for other in others), same
    assert len({STUDIES[study].ROWS[row].paper[:3] for study, row in same}) == 1


# As the paper prints them, study by study.
PAPER = {
  'score': {
    'fcos_none': (37.8, 56.2, 40.8, 21.2, 42.1, 48.2),
    'fcos_centerness': (38.5, 56.8, 41.6, 22.4, 42.4, 49.1),
    'fcos_iou': (38.7, 56.7, 42.0, 21.6, 43.0, 50.3),
    'fcos_centerness_guided': (37.9, 56.7, 40.7, 21.2, 42.1, 49.4),
    'fcos_iou_guided': (38.2, 57.0, 41.1, 22.5, 42.2, 48.9),
    'fcos_joint': (39.0, 57.8, 41.9, 22.0, 43.1, 51.0),
    'atss_none': (38.0, 56.5, 40.7, 20.6, 42.1, 49.1),
    'atss_centerness': (39.2, 57.4, 42.2, 23.0, 42.8, 51.1),
    'atss_iou': (39.6, 57.6, 43.0, 23.3, 43.7, 51.2),
    'atss_centerness_guided': (38.2, 56.2, 41.0, 21.5, 41.9, 49.7),
    'atss_iou_guided': (38.9, 57.4, 41.8, 22.8, 42.4, 50.6),
    'atss_joint': (39.9, 58.5, 43.0, 22.4, 43.9, 52.7),
  },
  'detectors': {
    'retinanet': (35.6, 55.5, 38.1, 20.1, 39.4, 46.8),
    'retinanet_qfl': (36.4, 56.3, 39.1, 20.4, 40.0, 48.7),
    'foveabox': (36.4, 55.8, 38.8, 19.4, 40.4, 47.7),
    'foveabox_qfl': (37.0, 55.7, 39.6, 20.2, 41.2, 48.8),
  },
  'beta': {
    '0': (37.6, 55.4, 40.3),
    '1': (39.0, 58.1, 41.7),
    '2': (39.9, 58.5, 43.0),
    '2.5': (39.7, 58.1, 42.7),
    '4': (38.2, 55.4, 41.6),
  },
  'representation': {
    'fcos_dirac': (38.5, 56.8, 41.6, 22.4, 42.4, 49.1),
    'fcos_gaussian': (38.6, 56.5, 41.6, 21.7, 42.5, 50.0),
    'fcos_general': (38.8, 56.6, 42.0, 22.5, 42.9, 49.8),
    'fcos_general_dfl': (39.0, 57.0, 42.3, 22.6, 43.0, 50.6),
    'atss_dirac': (39.2, 57.4, 42.2, 23.0, 42.8, 51.1),
    'atss_gaussian': (39.3, 57.0, 42.4, 23.6, 42.9, 51.0),
    'atss_general': (39.3, 57.1, 42.5, 23.5, 43.0, 51.2),
    'atss_general_dfl': (39.5, 57.3, 42.8, 23.6, 43.2, 51.2),
  },
  'bins': {
    '12': (40.1, 58.4, 43.1, 23.1, 43.8, 52.5),
    '14': (40.2, 58.3, 43.6, 23.3, 44.2, 52.2),
    '16': (40.2, 58.6, 43.4, 23.0, 44.3, 53.0),
    '18': (40.1, 58.1, 43.1, 22.6, 43.9, 52.6),
  },
  'bin_width': {
    '0.5': (40.2, 58.4, 43.0, 22.3, 43.8, 53.1),
    '1': (40.2, 58.6, 43.4, 23.0, 44.3, 53.0),
    '2': (39.9, 58.3, 42.9, 22.5, 43.8, 51.8),
    '4': (39.8, 58.5, 42.8, 22.8, 43.4, 52.3),
  },
  'contributions': {
    'none': (39.2, 57.4, 42.2),
    'qfl': (39.9, 58.5, 43.0),
    'dfl': (39.5, 57.3, 42.8),
    'both': (40.2, 58.6, 43.4),
  },
}
PAPER['bin_width_count'] = PAPER['bin_width']


@pytest.mark.parametrize('study', PAPER)
def test_the_papers_numbers(study):
  found = {name: row.paper for name, row in STUDIES[study].ROWS.items()}
  assert found == PAPER[study]


def test_a_row_is_compared_with_the_one_that_lacks_what_it_adds():
  found = {
    f'{study}:{name}': row.baseline
    for study, module in STUDIES.items()
    for name, row in module.ROWS.items()
    if row.baseline not in (None, module.BASELINE)
  }
  scores = ('none', 'centerness', 'iou', 'centerness_guided', 'iou_guided', 'joint')
  boxes = ('dirac', 'gaussian', 'general', 'general_dfl')
  assert found == {
    **{f'score:fcos_{name}': 'fcos_centerness' for name in scores},
    **{f'representation:fcos_{name}': 'fcos_dirac' for name in boxes},
    'detectors:foveabox': 'foveabox',
    'detectors:foveabox_qfl': 'foveabox',
    'uncertainty:kl_voting': 'kl',
    'uncertainty:gaussian_nll_penalty': 'gaussian_nll',
    'uncertainty:general_dfl_voting': 'general_dfl',
    'uncertainty:iou_guided_nms': 'iou',
  }


@pytest.mark.parametrize(
  'row, stop, num_bins',
  [
    ('bins:12', 12.0, 13),
    ('bins:18', 18.0, 19),
    ('bin_width:0.5', 16.0, 33),
    ('bin_width:4', 16.0, 5),
    ('bin_width_count:0.5', 8.0, 17),
    ('bin_width_count:4', 64.0, 17),
  ],
)
def test_bins_on_the_papers_grid(row, stop, num_bins):
  study, row = row.split(':')
  box = STUDIES[study].get_config(row).box  # the R-50 base
  assert (box.start, box.stop, box.num_bins) == (0.0, stop, num_bins)


def test_bins_keep_the_width_and_the_start_of_another_grid():
  c = tiny.config()
  c.box.update(start=-1.0, stop=3.0, num_bins=33)
  STUDIES['bins'].ROWS['18'].change(c)
  assert (c.box.start, c.box.stop, c.box.num_bins) == (-1.0, 3.5, 37)


def test_bins_that_are_not_whole_are_an_error():
  c = tiny.config()
  c.box.num_bins = 12
  with pytest.raises(
    ValueError, match='7/8 x the 11 intervals .*--set=box.num_bins=17'
  ):
    STUDIES['bins'].ROWS['14'].change(c)


def test_fcos_learns_as_far_as_the_bases_anchors_are_large():
  r50, demo = (
    STUDIES['score'].get_config(f'fcos_none@{base}')
    for base in ('gfl_r50_fpn_1x_coco', 'demo_shapes')
  )
  assert (r50.assignment.regress_range, r50.points.offset) == (8.0, 0.5)
  assert (demo.assignment.regress_range, demo.points.offset) == (4.0, 0.5)


def test_retinanets_anchors_are_half_of_atsss():
  r50, demo = (
    STUDIES['detectors'].get_config(f'retinanet@{base}')
    for base in ('gfl_r50_fpn_1x_coco', 'demo_shapes')
  )
  assert (r50.points.anchor_scale, r50.box.scale) == (4, 2.0)
  assert (demo.points.anchor_scale, demo.box.scale) == (2, 1.0)
  odd = tiny.config()
  odd.points.anchor_scale = 5
  changes.max_iou(odd)
  assert odd.points.anchor_scale == 2.5


def test_a_gaussian_is_trained_on_its_sides_alone():
  c = STUDIES['representation'].get_config('atss_gaussian')
  assert (c.box_loss.weight, c.edge_loss.kind, c.edge_loss.weight) == (
    0.0,
    'gaussian_nll',
    1.0,
  )


def test_unknown_names_are_errors_that_list_the_known():
  with pytest.raises(ValueError, match="no study 'gamma'; there are: beta, bin_width"):
    table.load_study('gamma')
  with pytest.raises(ValueError, match="no row '3'; there are: 0, 1, 2, 2.5, 4"):
    STUDIES['beta'].get_config('3@bccd')
  with pytest.raises(ValueError, match='give a row, .* 0, 1, 2, 2.5, 4'):
    STUDIES['beta'].get_config()
  with pytest.raises(ValueError, match="no base 'coco'; there are: bccd, coco128"):
    STUDIES['beta'].get_config('2@coco')


OWN_STUDY = """
from configs.ablations import table
TITLE, TABLE, QUESTION, NOTES, BASELINE = 'Mine', '', 'Which?', '', 'a'
def change(config):
  config.ema_decay = 0.5
ROWS = {'a': table.Row('A', None, lambda c: None), 'b': table.Row('B', None, change)}
def get_config(text=''):
  return table.row_config(ROWS, text)
"""
OWN_BASE = """
from configs import bccd
def get_config():
  config = bccd.get_config()
  config.epochs = 3.0
  return config
"""


@pytest.mark.filterwarnings('ignore:the load_module')  # ml_collections, on Python 3.11
def test_a_study_and_a_base_may_be_files_of_ones_own(tmp_path, monkeypatch):
  study, base = tmp_path / 'mine.py', tmp_path / 'photos.py'
  study.write_text(OWN_STUDY)
  base.write_text(OWN_BASE)
  monkeypatch.chdir(tmp_path)
  assert table.load_study('mine.py').TITLE == table.load_study(str(study)).TITLE
  assert table.base_config('photos.py').epochs == 3.0
  assert (table.stem('mine.py'), table.stem('beta')) == ('mine', 'beta')
  assert (table.resolved('photos.py'), table.resolved('bccd')) == (str(base), 'bccd')
  assert table.file_of('mine.py') == str(study)
  argv = ['train', f'--config={table.file_of("mine.py")}:b@{base}']
  found = flags.FlagValues()
  config_flags.DEFINE_config_file('config', flag_values=found, sys_argv=argv)
  found(argv)
  assert (found.config.ema_decay, found.config.epochs) == (0.5, 3.0)


def test_a_file_that_is_no_study_or_base_says_what_it_lacks(tmp_path):
  file = tmp_path / 'half.py'
  file.write_text("TITLE = 'Half'\nROWS = {}\n")
  lacks = 'half.py.* TABLE, QUESTION, NOTES, BASELINE, get_config'
  with pytest.raises(UserError, match=lacks):
    table.load_study(str(file))
  with pytest.raises(UserError, match='--base=.*half.py lacks get_config'):
    table.base_config(str(file))
  with pytest.raises(FileNotFoundError, match='--study=.*gone.py does not exist'):
    table.load_study(str(tmp_path / 'gone.py'))


@pytest.mark.filterwarnings('ignore:the load_module')  # ml_collections, on Python 3.11
def test_a_row_is_a_config_of_the_command_line():
  argv = ['train', '--config=configs/ablations/beta.py:0@bccd', '--config.epochs=3']
  found = flags.FlagValues()
  config_flags.DEFINE_config_file('config', flag_values=found, sys_argv=argv)
  found(argv)
  config = found.config
  assert (config.class_loss.beta, config.data.name, config.epochs) == (
    0.0,
    'coco_folder',
    3.0,
  )
  assert json.loads(config.to_json())['box']['kind'] == 'dirac'


def test_a_row_that_is_not_there_is_one_line_on_the_command_line(tmp_path):
  path = 'configs/ablations/beta.py:9@demo_shapes'
  script = [sys.executable, 'scripts/train.py', f'--workdir={tmp_path}']
  run = lambda flag: subprocess.run(
    [*script, flag],
    cwd=pathlib.Path(__file__).parents[1],
    capture_output=True,
    text=True,
    check=False,
  )
  bad = run(f'--config={path}')
  assert bad.returncode == 1 and 'Traceback' not in bad.stderr
  assert f"\nerror: --config={path}: there is no row '9'; there are: 0, 1" in bad.stderr
  bad = run('--confg=x')
  assert (
    bad.returncode == 1 and "error: Unknown command line flag 'confg'" in bad.stderr
  )
