import json

import jax
import numpy as np
import pytest
from absl import app, flags

from gfl_jax.models import Predictions, canvas_points
from gfl_jax.training import objective
from scripts import benchmark
from scripts.benchmarks import cases, naive
from tests import tiny

KEYS = {'case', 'variant', 'median_ms', 'min_ms', 'p90_ms', 'repeats', 'load'}


@pytest.fixture
def run(capsys, tmp_path):
  def call(*words):
    out = tmp_path / 'lines.jsonl'
    flags.FLAGS(['benchmark.py', '--repeats=2', f'--out={out}'])
    benchmark.main(['benchmark.py', *words])
    printed = capsys.readouterr().out
    assert out.read_text() == printed
    return [json.loads(line) for line in printed.splitlines()]

  return call


def test_a_case_prints_json_lines_with_the_documented_keys(run):
  machine, *lines = run('nms')
  assert machine['case'] == 'machine' and machine['matmul_gflops'] > 0
  assert {'device', 'cpu', 'cores', 'jax'} <= machine.keys()
  assert [line['variant'] for line in lines] == ['random', 'clustered']
  for line in lines:
    assert line.keys() >= KEYS | {'compile_s', 'temp_mb'} and line['case'] == 'nms'
    assert 0 < line['min_ms'] <= line['median_ms'] <= line['p90_ms']
    assert line['repeats'] == 2


def test_exports_are_timed_beside_the_jitted_model(run, monkeypatch):
  pytest.importorskip('onnx')
  pytest.importorskip('onnxruntime')

  network = lambda name, dtype: cases.Network(tiny.config(), 64, 2)
  monkeypatch.setattr(cases, 'network', network)
  _, *lines = run('export/demo')
  variants = [line['variant'].split(',')[0] for line in lines]
  assert variants == ['jitted', 'stablehlo', 'onnx']
  jitted = lines[0]['median_ms']
  for line in lines:
    assert line.keys() >= KEYS
    assert abs(line['times_jitted'] - line['median_ms'] / jitted) < 6e-4


def test_an_unknown_case_is_an_error_that_names_the_cases(run):
  with pytest.raises(app.UsageError, match=r"no case 'step/r101'.*step/r50.*study"):
    run('nms', 'step/r101')


def test_a_word_stands_for_all_cases_that_begin_with_it():
  names = ['step/r50', 'step/demo', 'nms']
  assert benchmark.select(['step'], names) == ['step/r50', 'step/demo']
  assert benchmark.select(['nms', 'step/demo'], names) == ['step/demo', 'nms']
  assert benchmark.select([], names) == names


def test_the_dense_form_it_compares_with_is_the_same_loss():
  config, batch = tiny.config(), tiny.batch()
  anchors = canvas_points(config, (64, 64))
  rng = np.random.default_rng(0)
  shape = (len(batch['images']), len(anchors.strides))
  normal = lambda *s: rng.normal(size=(*shape, *s)).astype(np.float32)
  predictions = Predictions(
    normal(config.model.num_classes), normal(4, config.box.num_bins), None
  )

  def both(predictions):
    ours, _ = objective.detection_loss(predictions, batch, anchors, config)
    return ours, naive.dense_loss(predictions, batch, anchors, config)

  (ours, gradient), (dense, dense_gradient) = jax.jit(
    lambda p: [jax.value_and_grad(lambda p, i=i: both(p)[i])(p) for i in range(2)]
  )(predictions)
  np.testing.assert_allclose(ours, dense, rtol=1e-5)
  close = lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6 * np.abs(b).max())
  jax.tree.map(close, gradient, dense_gradient)
