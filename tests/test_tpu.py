"""Costs of programs for TPUs: counted, read from a compiled program, predicted."""

import pathlib
import re

import jax
import jax.numpy as jnp
import pytest

from configs import gfl_r50_fpn_1x_coco
from gfl_jax.models import build_detector
from gfl_jax.training import parallel
from scripts.tpu import chips, compiled, costs, hlo, tables
from tests import tiny

ROOT = pathlib.Path(__file__).parents[1]


def forward_macs(config, canvas):
  detector = build_detector(config)
  images = jax.ShapeDtypeStruct((1, *canvas, 3), jnp.float32)
  variables = jax.eval_shape(detector.init, jax.random.key(0), images)
  return costs.conv_macs(jax.make_jaxpr(detector.apply)(variables, images))


def test_the_published_count_of_the_recipe():
  # mmdetection's "208 GFLOPs" are multiplications, without those of GroupNorm.
  macs = forward_macs(gfl_r50_fpn_1x_coco.get_config(), (800, 1280))
  assert macs == pytest.approx(207.6e9, rel=1e-3)


@pytest.mark.parametrize(
  ('stride', 'groups', 'size'), [(1, 1, 3), (2, 1, 3), (2, 2, 3), (1, 8, 3), (2, 1, 1)]
)
def test_each_gradient_of_a_convolution_costs_what_it_costs(stride, groups, size):
  images, kernel = (
    jnp.zeros((2, 16, 12, 8)),
    jnp.zeros((size, size, 8 // groups, 4 * 8)),
  )
  half = size // 2

  def conv(images, kernel):
    return jax.lax.conv_general_dilated(
      images,
      kernel,
      (stride, stride),
      ((half, half), (half, half)),
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
      feature_group_count=groups,
    ).sum()

  forward = 2 * (16 // stride) * (12 // stride) * 32 * size**2 * (8 // groups)
  assert costs.conv_macs(jax.make_jaxpr(conv)(images, kernel)) == forward
  both = jax.make_jaxpr(jax.grad(conv, argnums=(0, 1)))(images, kernel)
  assert costs.conv_macs(both) == pytest.approx(3 * forward, rel=0.35 / min(16, 12))


def test_loops_count_each_trip_and_functions_what_is_in_them():
  def conv(x):
    kernel = jnp.zeros((1, 1, 4, 4))
    return jax.lax.conv_general_dilated(
      x, kernel, (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
    )

  def loop(x):
    again = jax.lax.scan(lambda x, _: (jax.checkpoint(conv)(x), None), x, length=5)[0]
    return jax.jit(conv)(again)

  jaxpr = jax.make_jaxpr(loop)(jnp.zeros((1, 8, 8, 4)))
  assert costs.conv_macs(jaxpr) == 6 * 64 * 16


def test_training_is_three_forward_passes_less_what_is_frozen():
  config = tiny.config()
  config.batch_size = 2
  devices = parallel.DataParallel('jit', jax.devices()[:2])
  plain = compiled.model_flops('train', config, devices)
  forward = 2 * 2 * forward_macs(config, (64, 64))
  first = 2 * 2 * 16 * 16 * 48 * 8  # no gradient of the images
  assert plain == pytest.approx(3 * forward - first, rel=0.02)
  config.batch_size, config.accumulate, config.model.remat = 4, 2, ('stage2', 'head')
  assert compiled.model_flops('train', config, devices) == 2 * plain
  config.model.backbone.frozen_stages = 4
  assert compiled.model_flops('train', config, devices) < 2 * plain
  assert compiled.model_flops('evaluate', config, devices) == 2 * forward


def test_the_abstract_batch_is_the_pipelines():
  config, real = tiny.config(), tiny.batch()
  abstract = compiled.abstract_batch(config)
  assert {k: (v.shape, v.dtype) for k, v in abstract.items()} == {
    k: (v.shape, v.dtype) for k, v in real.items()
  }


TEXT = """HloModule jit_step, is_scheduled=true

%fused (param_0: bf16[8,10,12,64]) -> bf16[8,10,12,64] {
  %param_0 = bf16[8,10,12,64]{3,2,1,0:T(8,128)(2,1)} parameter(0)
  %kernel = bf16[1,1,64,64]{3,2,1,0:T(8,128)(2,1)} constant({...})
  ROOT %convolution.1 = bf16[8,10,12,64]{3,2,1,0:T(8,128)(2,1)} convolution(%param_0, %kernel), dim_labels=b01f_01io->b01f
}

%body (state: (s32[], f32[100])) -> (s32[], f32[100]) {
  %state = (s32[]{:T(128)}, f32[100]{0:T(128)}) parameter(0)
  %sort.1 = f32[100]{0:T(128)} sort(%state), dimensions={0}, metadata={op_name="jit(step)/shard_map/while/sort"}, backend_config={"window_config":{"estimated_cycles":"30"}}
  ROOT %tuple.1 = (s32[]{:T(128)}, f32[100]{0:T(128)}) tuple(%state, %sort.1)
}

%condition (state.1: (s32[], f32[100])) -> pred[] {
  %state.1 = (s32[]{:T(128)}, f32[100]{0:T(128)}) parameter(0)
  ROOT %compare.1 = pred[]{:T(128)} compare(%state.1, %state.1), direction=LT, backend_config={"window_config":{"estimated_cycles":"2"}}
}

ENTRY %main (x: bf16[8,10,12,64]) -> f32[100] {
  %x = bf16[8,10,12,64]{3,2,1,0:T(8,128)(2,1)} parameter(0)
  %fusion.7 = bf16[8,10,12,64]{3,2,1,0:T(8,128)(2,1)} fusion(%x), kind=kOutput, calls=%fused, metadata={op_name="jit(step)/shard_map/jvp(Detector)/head/conv"}, backend_config={"flag_configs":[],"window_config":{"estimated_cycles":"1500"}}
  %all-reduce.1 = (f32[]{:T(128)}, /*index=1*/f32[20]{0:T(128)}) all-reduce(%x, %x), to_apply=%add
  %gather.1 = f32[3,4]{1,0:T(4,128)} gather(%x, %x), slice_sizes={1,4}
  %copy.1 = f32[3,4]{0,1:T(4,128)} copy(%gather.1), backend_config={"window_config":{"estimated_cycles":"-5"}}
  %while.1 = (s32[]{:T(128)}, f32[100]{0:T(128)}) while(%x), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"10"}}
  ROOT %get-tuple-element.9 = f32[100]{0:T(128)} get-tuple-element(%while.1), index=1
}
"""  # noqa: E501


def test_the_schedule_of_a_program():
  items, unknown_loops = hlo.schedule(TEXT)
  assert not unknown_loops
  assert [(i.instruction.kind, i.group, i.times, i.cycles) for i in items] == [
    ('fusion', 'convolution', 1, 1500),
    ('all-reduce', 'collective', 1, 0),
    ('gather', 'gather', 1, 0),
    ('copy', 'copy and layout', 1, 0),
    ('compare', 'element-wise', 10, 20),
    ('sort', 'sort', 10, 300),
  ]
  assert items[0].instruction.source == 'jit(step)/shard_map/jvp(Detector)/head/conv'
  assert hlo.output_bytes(items[1]) == 84
  # 12 rows of 64 lie in tiles of 8 x 128.
  (array,) = hlo.arrays(items[0].instruction.output)
  assert array == ('bf16[8,10,12,64]', 8 * 10 * 12 * 64 * 2, 8 * 10 * 16 * 128 * 2)
  with pytest.raises(ValueError, match='ENTRY'):
    hlo.schedule('HloModule nothing')


def test_trips_are_read_from_the_condition_if_the_compiler_does_not_note_them():
  unknown = TEXT.replace('"known_trip_count":{"n":"10"}', '')
  sorts = lambda items: [i.times for i in items if i.group == 'sort']
  items, unknown_loops = hlo.schedule(unknown)
  assert sorts(items) == [1] and unknown_loops == 1
  counted = unknown.replace(
    '  ROOT %compare.1 = pred[]{:T(128)} compare(%state.1, %state.1)',
    '  %constant.4 = s32[]{:T(128)} constant(4), metadata={op_name="jit(step)"}\n'
    '  ROOT %compare.1 = pred[]{:T(128)} compare(%state.1, %constant.4)',
  )
  items, unknown_loops = hlo.schedule(counted)
  assert sorts(items) == [4] and not unknown_loops
  backwards = counted.replace('direction=LT', 'direction=NE')
  assert hlo.schedule(backwards)[1] == 1


def test_what_the_schedule_costs():
  chip, items = chips.CHIPS['v5e'], hlo.schedule(TEXT)[0]
  groups = costs.groups(items, chip)
  assert list(groups)[:2] == ['convolution', 'sort']
  assert groups['convolution'] == {'ms': 1e-3, 'count': 1, 'without_estimate': 0}
  assert costs.collectives(items) == {'count': 1, 'bytes': 84}
  assert [i['group'] for i in costs.largest(items, chip)] == ['sort', 'element-wise']
  assert [i['group'] for i in costs.without_estimate(items)] == ['gather']
  worst = costs.padding(items)['worst'][0]
  assert worst['array'] == 'bf16[8,10,12,64]'
  assert worst['source'] == 'jvp(Detector)/head/conv'


class Compiled:
  """What the costs read of a compiled program."""

  def __init__(self, temporaries):
    self.temporaries = temporaries

  def memory_analysis(self):
    class Sizes:
      argument_size_in_bytes = 3 * 10**9
      output_size_in_bytes = 2 * 10**9
      alias_size_in_bytes = 2 * 10**9
      temp_size_in_bytes = self.temporaries
      generated_code_size_in_bytes = 10**8

    return Sizes

  def cost_analysis(self):
    return {'flops': 1.0e12, 'bytes accessed': 8.19e9, 'optimal_seconds': -1.0}


def test_memory_fits_or_does_not():
  chip = chips.CHIPS['v5e']
  fits = costs.memory(Compiled(14 * 10**9), chip)
  assert fits['peak'] == 17.1e9 and fits['fits']
  assert not costs.memory(Compiled(14.2e9), chip)['fits']


def test_the_prediction_is_never_below_the_roofline_and_counts_the_links():
  chip, items = chips.CHIPS['v5e'], hlo.schedule(TEXT)[0]
  ms = costs.time(Compiled(0), items, chip, model_flops=1.97e12)
  assert ms['memory'] == pytest.approx(10) and ms['compute'] == pytest.approx(10)
  assert ms['optimal'] == -1000
  assert ms['all_reduce'] == pytest.approx(2 * 84 / 200e9 * 1e3)
  assert ms['step'] == ms['roofline'] + ms['all_reduce']
  assert ms['mfu'] == pytest.approx(1, rel=1e-4)


def test_the_compilers_refusal_is_read():
  message = (
    'RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total'
    ' memory required for HLO temporaries (20.50G) exceeds available HBM (15.75G). HLO'
    ' module: jit_train_step.'
  )
  found = compiled.refused_memory(message, chips.CHIPS['v5e'])
  assert found['peak'] == 20.5 * 2**30 and not found['fits']
  assert re.findall(r'[\d.]+', tables.shortage({'memory': found})) == ['22.01', '16.91']
  assert compiled.refused_memory('?', chips.CHIPS['v5e'])['peak'] is None


def test_options_of_the_compiler_are_read():
  texts = ['xla_a=false', '--xla_b=3', 'xla_c=auto=1']
  options = compiled.parsed_options(texts)
  assert options == {'xla_a': False, 'xla_b': 3, 'xla_c': 'auto=1'}
  with pytest.raises(ValueError, match='--option=xla_a must be NAME=VALUE'):
    compiled.parsed_options(['xla_a'])


def test_a_report_and_a_row_of_the_table():
  chip, items = chips.CHIPS['v5e'], hlo.schedule(TEXT)[0]
  ms = costs.time(Compiled(0), items, chip, model_flops=1.97e12)
  what = {
    **dict(program='train', backbone='resnet 50', dtype='bfloat16', canvas=[800, 1344]),
    **dict(images_per_chip=8, remat=['head'], accumulate=1, topology='v5e:16x16'),
    **dict(chips=256, jax='1', libtpu='2', options={'xla_x': False}),
  }
  line = what | {
    'memory': costs.memory(Compiled(10**9), chip),
    'ms': {key: value for key, value in ms.items() if key != 'mfu'},
    **dict(mfu=ms['mfu'], images_per_s=204_800, model_tflop_per_image=0.25),
    **dict(compiler_tflop=1.0, compiler_gb=8.19, unknown_loops=2),
    **costs.of_schedule(items, chip),
  }
  text = tables.report(line)
  assert 'memory per chip        4.10 GB of 17.18 GB' in text
  assert '-1000.00 ms, not plausible' in text
  assert 'counted once           2 loops of unknown length' in text
  assert 'MFU 100.0 %' in text and 'x10 sort' in text and 'x1 gather' in text
  refused = what | {'memory': {'peak': None, 'hbm': chip.hbm_bytes, 'fits': False}}
  assert 'more than 17.18 GB' in tables.report(refused)
  *_, fitting, not_fitting = tables.table([line, refused]).splitlines()
  assert (
    '| head | 1 | xla_x=false | 4.10 GB | 1.00 GB |' in fitting
    and '| 18 % |' in fitting
  )
  assert '**more than 17.18 GB' in not_fitting
  assert fitting.count('|') == not_fitting.count('|')


@pytest.mark.parametrize(
  ('name', 'message'),
  [
    ('v9:2x2', r"the TPU='v9' is not one of \['v4', 'v5e', 'v5p', 'v6e'\]"),
    ('v5e', 'give v5e:2x2, .*v5e:16x16'),
    ('v5e:4x4x4', 'give v5e:2x2'),
    ('v5p:4x8', 'give v5p:2x2x1, .*v5p:4x8x8'),
    ('v5e:0x2', 'give v5e:2x2'),
  ],
)
def test_a_slice_that_is_none_is_an_error_that_names_some(name, message):
  with pytest.raises(ValueError, match=message):
    chips.describe(name)


def test_without_libtpu_the_error_says_what_to_install(monkeypatch):
  monkeypatch.setattr(chips, 'find_spec', lambda name: None)
  with pytest.raises(ValueError, match=r"pip install -e '.\[tpu\]'"):
    chips.describe('v5e:2x2')


def test_the_kept_table_is_that_of_the_kept_lines():
  from gfl_jax import files

  folder = ROOT / 'results' / 'tpu'
  table = tables.table(files.read_json_lines(folder / 'compiled.jsonl'))
  assert table in (folder / 'README.md').read_text()
