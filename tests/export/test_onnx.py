import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gfl_jax.export import manifest, onnx, programs
from gfl_jax.export.onnx.graph import convert
from gfl_jax.export.onnx.model import make_model
from gfl_jax.export.onnx.operators import OPERATORS
from gfl_jax.export.onnx.suppression import class_aware_nms
from tests import tiny
from tests.export import detectors

pytest.importorskip('onnx')
pytest.importorskip('onnxruntime')


def gaussian(config):
  config.box.kind, config.edge_loss.kind = 'gaussian', 'gaussian_nll'
  config.decode.update(variance_voting=0.01, uncertainty_penalty=True)


def iou_guided(config):
  config.score.kind, config.decode.nms = 'iou', 'iou_guided'
  config.box.kind, config.edge_loss.kind = 'dirac', 'none'
  config.model.backbone.update(stem='conv7', norm='frozen_batch_norm')


@pytest.mark.parametrize(
  'change', [lambda c: None, gaussian, iou_guided], ids=['gfl', 'gaussian', 'iou']
)
def test_it_finds_what_the_jitted_model_finds(change, tmp_path):
  config = tiny.config()
  change(config)
  trained = detectors.trained(config)
  onnx.write(trained, tmp_path)
  program = onnx.load(tmp_path, manifest.read(tmp_path))
  batch = detectors.batch(3)
  expected = programs.jitted(trained)(batch)
  detectors.assert_same(program(batch), expected, atol=1e-4)
  # Any batch size: the same images two at a time.
  pair = {name: values[1:] for name, values in batch.items()}
  part = jax.tree.map(lambda x: x[1:], expected)
  detectors.assert_same(program(pair), part, atol=1e-4)


def test_a_canvas_that_is_not_square_has_two_files(tmp_path):
  import onnx as onnx_package

  trained = detectors.trained(canvas=(64, 96))
  onnx.write(trained, tmp_path)
  described = manifest.read(tmp_path)
  program, reference = onnx.load(tmp_path, described), programs.jitted(trained)
  for canvas in ((64, 96), (96, 64)):
    batch = detectors.batch(2, canvas=canvas)
    detectors.assert_same(program(batch), reference(batch), atol=1e-4)
  model = onnx_package.load(tmp_path / described.programs[0]['file'])
  assert {x.name for x in model.graph.input} == {'images', 'image_sizes', 'scales'}
  operators = {node.op_type for node in model.graph.node}
  assert 'NonMaxSuppression' in operators and 'Loop' not in operators
  properties = {entry.key: entry.value for entry in model.metadata_props}
  assert 'pl\\u00e4ttchen' in properties['class_names']


@pytest.mark.parametrize('slots', [4, 40])
def test_suppression_is_that_of_jax_with_equal_scores_and_empty_images(slots):
  from gfl_jax.ops import nms

  rng = np.random.default_rng(0)
  shape = (3, 24)
  corner = rng.uniform(0, 40, (*shape, 2)).round()
  boxes = np.concatenate(
    [corner, corner + rng.uniform(1, 40, corner.shape).round()], -1
  )
  scores = rng.choice([0.0, 0.2, 0.5, 0.9], shape)
  scores[1] = 0
  batch = {
    'boxes': boxes.astype(np.float32),
    'classes': rng.integers(0, 3, shape).astype(np.int32),
    'scores': scores.astype(np.float32),
  }
  one = lambda b, s, c: nms.class_aware_nms(
    b, s, c, iou_threshold=0.3, max_outputs=slots
  )

  def function(variables, batch):
    indices, valid = jax.vmap(one)(batch['boxes'], batch['scores'], batch['classes'])
    return {'indices': indices, 'valid': valid}

  native = class_aware_nms(iou_threshold=0.3, num_classes=3)
  found = run(function, batch, {**OPERATORS, 'jit:class_aware_nms': native})
  expected = jax.jit(function)({}, batch)
  assert expected['valid'].sum(-1)[0] > 3 and not expected['valid'][1].any()
  for name in expected:
    np.testing.assert_array_equal(found[name], expected[name])


def test_rounding_of_negative_numbers_and_what_is_not_finite_are_those_of_jax():
  whole = np.array([[-7, 7, -1, 0]] * 2, np.int32)
  real = np.array([[-np.inf, np.nan, 2.5, -0.0]] * 2, np.float32)

  def function(variables, batch):
    whole, real = batch['whole'], batch['real']
    return {
      'quotient': whole // 3,
      'remainder': whole % 3,
      'truncated': jax.lax.div(whole, jnp.full_like(whole, 3)),
      'finite': jnp.isfinite(real),
      'clipped': jnp.clip(jnp.where(jnp.isnan(real), 0, real), -1, 2),
      'any': (real > 2).any(-1),
      'all': (whole > -8).all(-1),
      'stacked': jnp.stack(list(jnp.moveaxis(real, 1, 0)[::2]), -1),
      'power': jnp.where(jnp.isfinite(real), real, 1) ** 3,
    }

  batch = {'whole': whole, 'real': real}
  found, expected = run(function, batch, OPERATORS), jax.jit(function)({}, batch)
  for name in expected:
    np.testing.assert_array_equal(found[name], expected[name], err_msg=name)


def test_a_depthwise_convolution_is_one_with_groups():
  """On CPUs jax takes another way, which is for its compiler alone."""
  from gfl_jax.ops.convolutions import depthwise_conv

  rng = np.random.default_rng(0)
  batch = {'x': rng.normal(size=(2, 9, 7, 5)).astype(np.float32)}
  kernel = rng.normal(size=(3, 3, 1, 5)).astype(np.float32)

  def function(variables, batch):
    settings = {'dimension_numbers': ('NHWC', 'HWIO', 'NHWC'), 'feature_group_count': 5}
    return {'y': depthwise_conv(batch['x'], kernel, (2, 2), 'SAME', **settings)}

  found, expected = run(function, batch, OPERATORS), jax.jit(function)({}, batch)
  np.testing.assert_allclose(found['y'], expected['y'], atol=1e-5)


def test_what_has_no_onnx_form_is_an_error_that_names_it(tmp_path, monkeypatch):
  with pytest.raises(NotImplementedError, match="'erf'"):
    batch = {'x': np.ones((2, 1), np.float32)}
    run(lambda v, b: {'y': jax.lax.erf(b['x'])}, batch, OPERATORS)
  monkeypatch.delitem(OPERATORS, 'top_k')
  with pytest.raises(ValueError, match="'top_k'.*export it as stablehlo"):
    onnx.write(detectors.trained(), tmp_path)


def test_bfloat16_is_exported_in_float32(tmp_path):
  config = tiny.config()
  config.model.dtype = 'bfloat16'
  trained = detectors.trained(config)
  with pytest.raises(ValueError, match='bfloat16.*has no ONNX form'):
    onnx.write(trained, tmp_path)
  assert onnx.in_float32(trained).config.model.dtype == 'float32'
  assert trained.config.model.dtype == 'bfloat16'


def test_a_file_that_is_no_model_is_an_error(tmp_path):
  trained = detectors.trained()
  (tmp_path / 'a.onnx').write_bytes(b'no model')
  entries = [{'file': 'a.onnx', 'canvas': [64, 64], 'batch': 'any'}]
  manifest.write(tmp_path, trained, format='onnx', programs=entries)
  with pytest.raises(ValueError, match=r'onnxruntime cannot read .*a\.onnx'):
    onnx.load(tmp_path, manifest.read(tmp_path))(detectors.batch(2))


def run(function, batch, operators):
  """The outputs of a function's ONNX form in onnxruntime."""
  import onnxruntime

  (size,) = jax.export.symbolic_shape('batch')
  shapes = {
    name: jax.ShapeDtypeStruct((size, *array.shape[1:]), array.dtype)
    for name, array in batch.items()
  }
  graph = convert(function, {}, shapes, operators)
  session = onnxruntime.InferenceSession(
    make_model(graph, {}).SerializeToString(), providers=['CPUExecutionProvider']
  )
  names = [output.name for output in session.get_outputs()]
  return dict(zip(names, session.run(names, batch), strict=True))
