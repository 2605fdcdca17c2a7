import copy
import csv
import io
import json
import re

import pytest

from gfl_jax.reports.markup import Table
from gfl_jax.reports.study import figures
from gfl_jax.reports.study.figures import Mark, Panel
from gfl_jax.reports.study.page import summary_table, write_study_report
from gfl_jax.reports.study.results import compare_order, compare_rows, load_study
from gfl_jax.reports.study.statistics import Estimate, estimate
from tests.reports.html_text import Page

SHIFTS = (0.0, 0.04, -0.02)  # what a seed does to all rows
WOBBLE = (0.001, -0.001, 0.0)
AS_PAPER = {'none': 37.6, 'branch': 39.0, 'joint': 39.9, 'strong': 39.7}


def make_run(row, seed, ap, **changes):
  metrics = {'step': 9, 'AP': ap, 'AP50': 0.8, 'APl': None, 'seconds': 1, 'note': 'x'}
  metrics['diagnostics'] = {'calibration_error': ap / 10, 'crps': None}
  run = {'seed': seed, 'folder': f'runs/beta.{row}-seed{seed}-0', 'status': 'finished'}
  run |= {'command': f'python scripts/train.py --config=beta.py:{row} #{seed}'}
  return run | {'error': None, 'metrics': metrics, 'seconds': 60} | changes


def make_row(name, offset, paper, *, seeds=3, signs=(1, 1, 1)):
  """A row whose AP is 0.5 + what its seed does + its offset, a little varied."""
  aps = [
    0.5 + SHIFTS[seed] + signs[seed] * offset + (WOBBLE[seed] if offset else 0)
    for seed in range(seeds)
  ]
  runs = [make_run(name, seed, ap) for seed, ap in enumerate(aps)]
  points = None if paper is None else {'AP': paper, 'AP50': 57}
  title = f'{name} <row>'
  return {'name': name, 'title': title, 'paper': points, 'note': '', 'runs': runs}


def make_study(seeds=3, papers=AS_PAPER, **changes):
  rows = [
    make_row('none', -0.03, papers.get('none'), seeds=seeds),
    make_row('branch', 0.02, papers.get('branch'), seeds=seeds),
    make_row('joint', 0, papers.get('joint'), seeds=seeds),
    make_row('strong', 0.02, papers.get('strong'), seeds=seeds, signs=(1, -1, 0.25)),
  ]
  study = {'study': 'beta', 'title': 'Beta | $x$', 'table': '1c', 'rows': rows}
  study |= {
    'question': 'Which <b>beta</b>?',
    'base': 'demo_shapes',
    'baseline': 'joint',
  }
  study |= {'overrides': ['epochs=4'], 'command': 'python scripts/ablate.py'}
  study |= {'code': '0123456789ab', 'git': 'feedbeef', 'compilations': 1}
  study |= {'seconds': 754, 'environment': {'versions': {'jax': '0.10.2'}}}
  return study | changes


def write(folder, study):
  folder.mkdir(parents=True, exist_ok=True)
  (folder / 'study.json').write_text(json.dumps(study))
  return folder


def markdown_tables(text):
  """The cells of each table, row by row, without the line of dashes."""
  tables = re.findall(r'(?:^\|.*\|\n)+', text, re.MULTILINE)
  split = [
    [re.split(r'(?<!\\)\|', line)[1:-1] for line in table.splitlines()]
    for table in tables
  ]
  return [[[cell.strip() for cell in row] for row in t[:1] + t[2:]] for t in split]


def csv_lines(folder):
  text = (folder / 'results.csv').read_bytes().decode()
  return list(csv.DictReader(io.StringIO(text, newline='')))


def test_rows_are_read_by_their_paired_difference(tmp_path):
  found = compare_rows(load_study(write(tmp_path, make_study())))
  assert {name: one.conclusion for name, one in found.items()} == {
    'none': 'worse',
    'branch': 'better',
    'strong': 'no difference shown (noise)',
  }
  # In points; the seeds' own shifts are gone.
  assert found['branch'].difference.mean == pytest.approx(2.0)
  assert found['branch'].difference.std == pytest.approx(0.1)
  assert found['none'].paper_difference == pytest.approx(-2.3)


def test_a_row_may_have_a_baseline_of_its_own(tmp_path):
  study = make_study()
  study['rows'][3]['baseline'] = 'branch'
  study['rows'][1]['baseline'] = None
  found = compare_rows(load_study(write(tmp_path, study)))
  aps = {
    row['name']: [run['metrics']['AP'] for run in row['runs']] for row in study['rows']
  }
  ours = [100 * (a - b) for a, b in zip(aps['strong'], aps['branch'], strict=True)]
  assert found['strong'].difference.mean == pytest.approx(sum(ours) / 3)
  assert found['strong'].paper_difference == pytest.approx(39.7 - 39.0)
  assert found['branch'].paper_difference == pytest.approx(39.0 - 39.9)


def test_a_row_may_be_a_baseline_alone(tmp_path):
  study = make_study()
  study['rows'][1]['baseline'] = 'branch'
  study['rows'][3]['baseline'] = 'branch'
  path = write_study_report(write(tmp_path, study))
  assert set(compare_rows(load_study(tmp_path))) == {'none', 'strong'}
  text = Page(path).text
  assert 'the baseline “joint <row>” – worse: “none <row>”.' in text
  assert '“branch <row>” – no difference shown (noise): “strong <row>”.' in text
  assert 'no difference shown (noise); against branch <row>' in text
  table = markdown_tables((tmp_path / 'results.md').read_text())[0]
  column = table[0].index('compared with')
  baselines = [line[column].replace('\\', '') for line in table[1:]]
  assert baselines == ['joint <row>', '–', '–', 'branch <row>']


def test_the_baseline_is_named_once_where_all_rows_have_it(tmp_path):
  write_study_report(write(tmp_path, make_study()))
  assert 'compared with' not in (tmp_path / 'results.md').read_text()


def test_several_environments_are_reported(tmp_path):
  made = lambda devices, runs: {
    'devices': devices, 'versions': {'jax': '0.10.2'}, 'git': 'feedbeef', 'runs': runs
  }  # fmt: skip
  one, two = made('1 x cpu', 11), made('1 x H100', 1)
  page = Page(write_study_report(write(tmp_path, make_study(environments=[one]))))
  assert 'different environments' not in page.text
  page = Page(write_study_report(write(tmp_path, make_study(environments=[one, two]))))
  assert 'made in 2 different environments' in page.text
  assert 'made 1 of the runs' in page.text and 'devices 1 x H100' in page.text


@pytest.mark.parametrize(
  'status, words', [('running', 'still running, or'), ('interrupted', 'continues it')]
)
def test_a_run_that_is_not_done_counts_nowhere(tmp_path, status, words):
  study = make_study()
  study['rows'][0]['runs'][0] |= {'status': status, 'metrics': None, 'seconds': None}
  found = load_study(write(tmp_path, study))
  assert [len(row.finished) for row in found.rows] == [2, 3, 3, 3]
  text = Page(write_study_report(tmp_path)).text
  assert f'Of 12 runs: 1 {status}.' in text and words in text


def test_a_difference_that_only_one_comparison_would_show(tmp_path):
  study = make_study()
  for seed, ap in enumerate((0.51, 0.556, 0.4943)):  # +1.0, +1.6 and +1.43 points
    study['rows'][1]['runs'][seed]['metrics']['AP'] = ap
  for row, offsets in ((0, (0, 0.01, -0.01)), (3, (0.01, 0, -0.01))):
    for seed, offset in enumerate(offsets):
      study['rows'][row]['runs'][seed]['metrics']['AP'] = 0.5 + SHIFTS[seed] + offset
  found = compare_rows(load_study(write(tmp_path, study)))['branch']
  assert found.conclusion == 'better, but only before correction'
  assert found.difference.is_beyond_noise
  assert found.corrected_p == pytest.approx(3 * found.difference.p_value)
  assert found.corrected_p > 0.05
  page = Page(write_study_report(tmp_path))
  assert 'better, but only before correction: “branch <row>”; no diff' in page.text
  assert "Holm's correction is for 3 comparisons" in page.text
  assert 'the opposite order, beyond noise only before correction' in page.text
  assert figures.COLORS['better'] not in page.source.partition('</style>')[2]
  assert '0 of 6' in page.text and '0 confirmed, 0 contradicted' in page.text


def test_pairs_are_sorted_by_what_they_show_of_the_papers_order(tmp_path):
  order = compare_order(load_study(write(tmp_path, make_study())))
  found = {
    (pair.row.name, pair.other.name): (pair.outcome, round(pair.difference.mean, 6))
    for pair in order.pairs
  }
  assert len(found) == 6
  assert found['joint', 'none'] == ('confirmed', 3.0)
  assert found['joint', 'branch'] == ('contradicted', -2.0)
  assert found['strong', 'branch'] == ('reversed', round(-5.5 / 3, 6))
  assert found['joint', 'strong'] == ('reversed', round(-0.5 / 3, 6))
  assert not any(pair.is_uncorrected for pair in order.pairs)
  unclear = [(p.row.name, p.other.name) for p in order.pairs if not p.is_clear]
  assert unclear == [('joint', 'strong')]  # 39.9 and 39.7
  # Largest difference in the paper first.
  assert [p.paper_difference for p in order.pairs] == sorted(
    (p.paper_difference for p in order.pairs), reverse=True
  )
  # Ours: none < joint < strong < branch; the paper: none < branch < strong < joint.
  assert order.tau == pytest.approx(0)


def test_equal_papers_and_missing_papers_order_nothing(tmp_path):
  study = make_study(papers={'none': 39.0, 'branch': 39.0, 'joint': 39.9})
  order = compare_order(load_study(write(tmp_path, study)))
  pairs = {(pair.row.name, pair.other.name) for pair in order.pairs}
  assert pairs == {('joint', 'none'), ('joint', 'branch')}
  assert [row.name for row in order.rows] == ['none', 'branch', 'joint']


def test_the_page_holds_the_study(tmp_path):
  path = write_study_report(write(tmp_path, make_study()))
  assert path == tmp_path / 'report.html'
  page = Page(path)
  for text in (
    'Table 1c: Beta | $x$', 'Which <b>beta</b>?', 'demo_shapes (epochs=4)',
    '3 seeds (0, 1, 2)', 'none <row>', '12 of 12', '50.67 ± 7.59', '39.9', '−2.3',
    '~ −0.2', '12 min 34 s', 'feedbeef', '0123456789ab', 'versions.jax', '0.10.2',
    'calibration_error', 'runs/beta.none-seed2-0', 'better: “branch <row>”',
    'COCO, ResNet-50, 90k iterations', 'python scripts/ablate.py',
  ):  # fmt: skip
    assert text in page.text, text
  for row in ('none', 'branch', 'joint', 'strong'):
    for seed in range(3):
      assert f'beta.py:{row} #{seed}' in page.text
  # A dot per run and one per mean, for AP, the differences and the paper's of both.
  assert page.tags.count('circle') == (12 + 4 + 4) + (9 + 3 + 3)


def test_the_page_loads_nothing_and_runs_nothing(tmp_path):
  page = Page(write_study_report(write(tmp_path, make_study())))
  assert not {'script', 'row', 'link', 'img', 'iframe'} & set(page.tags)
  assert '<b>beta' not in page.source and not page.addresses
  assert '@import' not in page.source and 'url(' not in page.source


def test_the_same_study_gives_the_same_files(tmp_path):
  names = ('report.html', 'results.md', 'results.csv')
  write_study_report(write(tmp_path, make_study()))
  first = [(tmp_path / name).read_bytes() for name in names]
  write_study_report(tmp_path)
  assert [(tmp_path / name).read_bytes() for name in names] == first


def test_failed_and_missing_runs_are_shown(tmp_path):
  study = make_study()
  error = 'FloatingPointError: loss is nan\n<after> step | 50'
  lost = {'metrics': None, 'seconds': None}
  study['rows'][0]['runs'][1] |= lost | {'status': 'failed', 'error': error}
  study['rows'][0]['runs'][2] |= lost | {'status': 'missing', 'folder': None}
  study['rows'][1]['runs'][0]['metrics']['AP'] = None
  page = Page(write_study_report(write(tmp_path, study)))
  assert 'Of 12 runs: 1 failed, 1 missing, 1 finished without an AP.' in page.text
  assert 'loss is nan <after> step | 50' in page.text
  assert 'not run yet' in page.text and 'it has no AP' in page.text
  assert '10 of 12' in page.text  # finished
  assert 'one seed in common: noise unknown: “none <row>”' in page.text
  found = compare_rows(load_study(tmp_path))
  assert (found['none'].difference.count, found['branch'].difference.count) == (1, 2)
  for table in markdown_tables((tmp_path / 'results.md').read_text()):
    assert {len(row) for row in table} == {len(table[0])}
  lines = csv_lines(tmp_path)
  assert [line['status'] for line in lines[:3]] == ['finished', 'failed', 'missing']
  assert lines[1]['error'] == error


def test_a_row_without_any_run(tmp_path):
  study = make_study()
  for run in study['rows'][0]['runs']:
    run |= {'status': 'missing', 'metrics': None, 'seconds': None}
  page = Page(write_study_report(write(tmp_path, study)))
  assert 'not compared: no seed that both finished: “none <row>”' in page.text
  assert 'Not compared: 3 pairs of the paper' in page.text


def test_nothing_has_run_yet(tmp_path):
  study = make_study(compilations=0, seconds=0.0, environment={})
  for row in study['rows']:
    for run in row['runs']:
      run |= {'status': 'missing', 'metrics': None, 'seconds': None}
  page = Page(write_study_report(write(tmp_path, study)))
  assert '0 of 12' in page.text and 'The runs have no diagnostics' in page.text


def test_one_seed_calls_nothing_better(tmp_path):
  page = Page(write_study_report(write(tmp_path, make_study(seeds=1))))
  assert 'With one seed the noise is unknown' in page.text
  assert '±' not in page.text.replace('± and [ ] are', '')
  assert 'better:' not in page.text and 'worse:' not in page.text
  assert 'noise unknown (one seed)' in page.text


def test_rows_that_share_their_runs(tmp_path):
  study = make_study()
  study['rows'][3]['runs'] = copy.deepcopy(study['rows'][2]['runs'])
  study = load_study(write(tmp_path, study))
  assert compare_rows(study)['strong'].conclusion == 'the same runs'
  pairs = {(p.row.name, p.other.name): p.outcome for p in compare_order(study).pairs}
  assert pairs['joint', 'strong'] == 'equal'


def test_a_study_that_is_not_the_papers(tmp_path):
  study = make_study(papers={}, table='')
  page = Page(write_study_report(write(tmp_path, study)))
  assert 'our own study' in page.text and 'The paper has no numbers' in page.text
  assert "paper's" not in page.text and 'Kendall' not in page.text
  assert page.tags.count('circle') == (12 + 4) + (9 + 3)


def test_only_the_papers_own_recipe_may_be_compared_in_numbers(tmp_path):
  recipe = {'base': 'gfl_r50_fpn_1x_coco', 'overrides': []}
  for name, changes in (('a', recipe), ('b', recipe | {'overrides': ['epochs=1']})):
    text = Page(write_study_report(write(tmp_path / name, make_study(**changes)))).text
    assert ('the same recipe' in text) == (name == 'a')
    assert ('not the APs' in text) == (name == 'b')


def test_diagnostics_are_marked_against_the_baseline(tmp_path):
  write_study_report(write(tmp_path, make_study()))
  tables = markdown_tables((tmp_path / 'results.md').read_text())
  table = next(table for table in tables if table[0][0] == 'diagnostic')
  rows = {row[0]: row[1:] for row in table[1:]}
  # Ours are AP / 10: they differ where the AP does, and a low one is good.
  marks = [re.findall('[✓✗]', cell) for cell in rows['calibration_error'][1:-1]]
  assert marks == [['✓'], ['✗'], [], []]
  assert rows['calibration_error'][0] == 'lower'
  assert 'expected calibration error' in rows['calibration_error'][-1]
  assert 'crps' not in rows  # null in all runs


def test_the_csv_has_a_line_per_run_on_one_scale(tmp_path):
  write_study_report(write(tmp_path, make_study()))
  lines = csv_lines(tmp_path)
  assert len(lines) == 12
  first = lines[0]
  assert (first['row'], first['seed'], first['paper_AP']) == ('none', '0', '0.376')
  assert float(first['AP']) == pytest.approx(0.471)
  assert float(first['diagnostics.calibration_error']) == pytest.approx(0.0471)
  assert (first['APl'], first['diagnostics.crps'], first['paper_APs']) == ('', '', '')
  assert first['run_seconds'] == '60' and first['seconds'] == '1'


def test_the_markdown_shows_names_as_they_are(tmp_path):
  write_study_report(write(tmp_path, make_study()))
  text = (tmp_path / 'results.md').read_text()
  assert text.startswith('# Table 1c: Beta \\| \\$x\\$\n')
  table = markdown_tables(text)[0]
  assert [row[0] for row in table[1:]] == [
    f'{name} \\<row>' for name in ('none', 'branch', 'joint', 'strong')
  ]
  assert table[3][4:6] == ['–', 'baseline']
  assert Table('l', ['x'], [['_a_b_ *']]).as_markdown() == (
    '| x |\n| --- |\n| \\_a_b\\_ \\* |\n'
  )


def test_the_summary_holds_every_study_below_a_folder(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  write(tmp_path / 'results' / 'b', make_study(title='Second'))
  write(tmp_path / 'results' / 'a', make_study(title='First', table=''))
  text = summary_table(tmp_path / 'results')
  assert '[First](<results/a/results.md>)' in text
  assert text.index('First') < text.index('[Table 1c: Second](<results/b/results.md>)')
  tables = markdown_tables(text)
  assert len(tables) == 2 and len(tables[0]) == 5
  assert tables[0][1][1:] == [
    '47.67 ± 7.43', '3 of 3', '−3.00 \\[−3.25, −2.75]', 'worse', '37.6', '−2.3',
  ]  # fmt: skip
  with pytest.raises(FileNotFoundError, match=r'no study\.json below .*/empty'):
    summary_table(tmp_path / 'empty')


@pytest.mark.parametrize(
  'change, message',
  [
    (lambda s: s.update(baseline='two'), "baseline 'two' is not one of the rows"),
    (lambda s: s['rows'].append(s['rows'][0]), 'two rows share a name'),
    (lambda s: s['rows'][0]['runs'][0].update(seed=1), "row 'none' has a seed twice"),
    (lambda s: s['rows'][0]['runs'][0].update(status='ok'), "status 'ok' is not one"),
    (lambda s: s['rows'][0].update(baseline='gone'), "baseline 'gone' is not one of"),
    (lambda s: s.pop('question'), "has no field 'question'"),
    (lambda s: s['rows'][0].pop('paper'), "has no field 'paper'"),
  ],
)
def test_a_damaged_study_is_an_error_that_names_it(tmp_path, change, message):
  study = make_study()
  change(study)
  with pytest.raises(ValueError, match=rf'study\.json.*{message}'):
    write_study_report(write(tmp_path, study))


def test_no_study(tmp_path):
  with pytest.raises(FileNotFoundError, match=r'is not the folder of a study'):
    write_study_report(tmp_path)
  (tmp_path / 'study.json').write_text('{"rows": [')
  with pytest.raises(ValueError, match=r'study\.json: '):
    write_study_report(tmp_path)


def places(figure):
  """The dots' and the bars' ends, in per cent of the strip."""
  found = re.findall(r'<(?:circle|line|svg)[^>]*? (?:cx|x1|x2|x)="([-\d.]+)%"', figure)
  return [float(place) for place in found]


def test_a_wide_interval_leaves_the_dots_apart():
  marks = [
    Mark({0: 1.0, 1: 1.2}, Estimate(2, 1.1, None, 40.0, None), 'plain', ''),
    Mark({0: 2.0}, estimate([2.0]), 'baseline', ''),
  ]
  figure = figures.strips([('a', ''), ('b', '')], [Panel('t', 'h', 50, marks)])
  assert all(0 <= place <= 100 for place in places(figure))
  dots = [float(x) for x in re.findall(r'<circle cx="([\d.]+)%"', figure)]
  assert max(dots) - min(dots) >= 30  # a third of the strip


def test_dots_are_drawn_to_scale():
  marks = [Mark({}, estimate([value]), 'plain', '') for value in (-1.0, 3.0, 0.0)]
  panel = Panel('t', 'h', 50, marks, has_zero=True)
  figure = figures.strips([('', '')] * 3, [panel])
  low, high, zero = map(float, re.findall(r'<circle cx="([\d.]+)%"', figure))
  assert (zero - low) / (high - low) == pytest.approx(0.25, abs=1e-3)
  assert f'x1="{zero:.2f}%"' in figure and 'stroke-dasharray' in figure


def test_a_figure_of_one_value():
  panel = Panel('t', 'h', 50, [Mark({0: 7.0}, estimate([7.0, 7.0]), 'plain', '7.0')])
  figure = figures.strips([('a', '')], [panel])
  assert all(0 <= place <= 100 for place in places(figure))
  assert '7.0' in figure and 'nan' not in figure


def test_ticks_reach_beyond_the_data():
  marks = [Mark({0: 29.96, 1: 31.3}, estimate([30.2, 31.0]), 'plain', '')]
  figure = figures.strips([('', '')], [Panel('t', 'h', 50, marks)])
  ticks = [float(text) for text in re.findall(r'<text [^>]*>([\d.]+)</text>', figure)]
  assert min(ticks) <= 29.96 and max(ticks) >= 31.3


def test_differences_from_the_paper_are_reported_where_known(tmp_path):
  write_study_report(write(tmp_path, make_study()))
  assert 'Not as in the paper' not in Page(tmp_path / 'report.html').text
  write_study_report(write(tmp_path, make_study(notes='Boxes < are larger.')))
  told = 'Not as in the paper: Boxes {} are larger.'
  assert told.format('<') in Page(tmp_path / 'report.html').text
  assert told.format('\\<') in (tmp_path / 'results.md').read_text()


def test_few_seeds_and_runs_that_learned_nothing_are_reported(tmp_path):
  two = Page(write_study_report(write(tmp_path, make_study(seeds=2)))).text
  assert 'Compared over fewer than 3 seeds: every row.' in two
  assert 'hardly learned' not in two
  study = make_study()
  assert 'fewer than' not in Page(write_study_report(write(tmp_path, study))).text
  study['rows'][0]['runs'].pop()
  text = Page(write_study_report(write(tmp_path, study))).text
  assert 'Compared over fewer than 3 seeds: “none <row>”.' in text
  for row in study['rows']:
    for run in row['runs']:
      run['metrics']['AP'] /= 20
  text = Page(write_study_report(write(tmp_path, study))).text
  assert '2.63 points' in text and 'hardly learned' in text


def test_the_widths_of_the_intervals_are_reported(tmp_path):
  study = load_study(write(tmp_path, make_study()))
  widths = sorted(one.difference.half_width for one in compare_rows(study).values())
  text = Page(write_study_report(tmp_path)).text
  low, middle, high = (f'{width:.2f}' for width in widths)
  assert f'± {low} to ± {high} points (median {middle})' in text


def set_diagnostic(study, name, values):
  """A diagnostic of each row, a little different from seed to seed."""
  for row, value in zip(study['rows'], values, strict=True):
    for run in row['runs']:
      wobbled = None if value is None else value + 0.001 * WOBBLE[run['seed']]
      run['metrics']['diagnostics'][name] = wobbled


def test_diagnostics_are_reported_against_the_baseline(tmp_path):
  study = make_study()
  set_diagnostic(study, 'score_iou_correlation', (0.5, 0.7, 0.6, 0.4))
  set_diagnostic(study, 'side_crps', (2.5, 2.5, 2.0, 2.25))
  set_diagnostic(study, 'coverage_50', (0.4, 0.55, 0.7, 0.75))
  set_diagnostic(study, 'spread_correlation', (0.2, 0.1, None, None))
  set_diagnostic(study, 'true_positives', (5.0, 7.0, 6.0, 4.0))
  write_study_report(write(tmp_path, study))
  text = Page(tmp_path / 'report.html').text
  for told in (
    'Ranking, baseline “joint <row>” and best row',
    '(higher is good) 0.600 ± 0.000, best 0.700 ± 0.000 ✓ of “branch <row>”',
    'CRPS in px (lower is good) 2.000 ± 0.000, no row is better',
    '(0.5 is good) 0.700 ± 0.000, best 0.550 ± 0.000 ✓ of “branch <row>”',
    '(higher is good) –, best 0.200 ± 0.000 of “none <row>”',
  ):
    assert told in text, told
  tables = markdown_tables((tmp_path / 'results.md').read_text())
  table = next(table for table in tables if table[0][0] == 'diagnostic')
  rows = {row[0]: row[1:-1] for row in table[1:]}
  found = [re.findall('[✓✗]', cell) for cell in rows['coverage_50'][1:]]
  assert found == [['✓'], ['✓'], [], ['✗']]  # nearer to 0.5, from either side
  assert rows['true_positives'] == ['–', '5 ± 0', '7 ± 0', '6 ± 0', '4 ± 0']


def test_commands_that_differ_in_the_seed_are_one_line(tmp_path):
  study = make_study()
  for row in study['rows']:
    for run in row['runs']:
      seed = run['seed']
      folder = f'runs/beta.{row["name"]}-seed{seed}-0123abc{seed}'
      own = f' --config.seed={seed}' if seed else ''
      run['command'] = f'train.py --workdir={folder}{own}'
  study['rows'][3]['runs'][1]['command'] += ' --config.epochs=2'
  write_study_report(write(tmp_path, study))
  text = (tmp_path / 'results.md').read_text()
  lines = [line for line in text.splitlines() if line.startswith('train.py')]
  pattern = (
    'train.py --workdir=runs/beta.{}-seed{{seed}}-{{digest}} --config.seed={{seed}}'
  )
  assert lines[:3] == [pattern.format(row) for row in ('none', 'branch', 'joint')]
  assert len(lines) == 6  # the last row's are told one by one


def test_the_summary_leaves_out_what_has_not_run(tmp_path):
  study = make_study(title='Later')
  for row in study['rows']:
    for run in row['runs']:
      run |= {'status': 'missing', 'metrics': None, 'seconds': None}
  write(tmp_path / 'a', study)
  with pytest.raises(FileNotFoundError, match='no study below .* has a finished run'):
    summary_table(tmp_path)
  write(tmp_path / 'b', make_study(title='First'))
  write(tmp_path / 'c', make_study(title='Second'))
  text = summary_table(tmp_path)
  assert 'Later' not in text and 'First' in text and 'Second' in text
  assert text.count('one run per row') == 1


def test_one_pair_is_reported_in_the_singular(tmp_path):
  study = make_study(papers={'joint': 39.9, 'strong': 39.7})
  text = Page(write_study_report(write(tmp_path, study))).text
  assert 'orders 1 pair of these rows' in text
  assert 'In 1 of 1 pair (marked ~)' in text
  assert '1 pairs' not in text
