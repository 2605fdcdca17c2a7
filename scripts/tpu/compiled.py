"""Compiles the programs of a run for a slice of TPUs, on a machine without any."""

import json
import re
import time
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gfl_jax import models
from gfl_jax.errors import UserError
from gfl_jax.evaluation import evaluator
from gfl_jax.training import config_checks, step
from gfl_jax.training.parallel import AXIS, DataParallel
from scripts.tpu import costs, hlo
from scripts.tpu.chips import Chip, Slice

# Only a constant of the learning rate's schedule, which does not change the costs.
_STEPS_PER_EPOCH = 1000


def parsed_options(texts: Sequence[str]) -> dict[str, Any]:
  """Options of the compiler from 'NAME=VALUE'; true, false and numbers are converted.

  Raises:
    ValueError: a text without a value.
  """
  options = {}
  for text in texts:
    name, separator, value = text.removeprefix('--').partition('=')
    if not separator:
      raise UserError(f'--option={text} must be NAME=VALUE')
    try:
      options[name] = json.loads(value)
    except ValueError:
      options[name] = value
  return options


def compiled(
  name: str, config: Any, where: Slice, options: dict[str, Any]
) -> tuple[dict[str, Any], str]:
  """Compiles 'train' or 'evaluate' and returns its costs.

  Args:
    name: of the program.
    config: an experiment's config; its batch_size is that of all chips.
    where: the slice to compile for.
    options: of the compiler, by name.

  Returns:
    A JSON line, and the text of the compiled program. If the compiler refuses the
    program because it does not fit, the text is empty and the line has few numbers.

  Raises:
    ValueError: a config that cannot run, a batch that cannot be split, or options that
      the compiler does not know.
  """
  config_checks.check_config(config)
  devices = DataParallel('jit', where.devices)
  devices.check_batch_size(config.batch_size, config.accumulate)
  program, arguments = _program(name, config, devices)
  line = {'program': name, **_described(config, where), 'options': options}
  start = time.perf_counter()
  lowered = program.lower(*arguments)
  try:
    done = lowered.compile(compiler_options=options)
  except jax.errors.JaxRuntimeError as error:
    if options and 'INVALID_ARGUMENT' in str(error):
      raise UserError(f'--option: {str(error).splitlines()[0]}') from error
    if 'RESOURCE_EXHAUSTED' not in str(error):
      raise
    return line | {'memory': refused_memory(str(error), where.chip)}, ''
  line['compile_s'] = round(time.perf_counter() - start, 1)
  text = done.as_text()
  items, unknown_loops = hlo.schedule(text)
  flops = model_flops(name, config, devices) / devices.num_devices
  analysis = done.cost_analysis()
  predicted = costs.time(done, items, where.chip, flops)
  return line | {
    'memory': costs.memory(done, where.chip),
    'ms': {key: round(value, 3) for key, value in predicted.items() if key != 'mfu'},
    'mfu': round(predicted['mfu'], 4),
    'images_per_s': round(1e3 * config.batch_size / predicted['step'], 1),
    'model_tflop_per_image': round(
      flops * devices.num_devices / config.batch_size / 1e12, 4
    ),
    'compiler_tflop': round(analysis['flops'] / 1e12, 4),
    'compiler_gb': round(analysis['bytes accessed'] / 1e9, 3),
    'unknown_loops': unknown_loops,
    **costs.of_schedule(items, where.chip),
  }, text


def model_flops(name: str, config: Any, devices: DataParallel) -> float:
  """FLOPs of the convolutions of one run on all chips, each counted once.

  Counted in the jaxpr of the program without rematerialisation and accumulation, which
  compute some convolutions twice.
  """
  plain = config.copy_and_resolve_references()
  plain.accumulate = 1
  plain.model.remat = ()
  program, arguments = _program(name, plain, devices)
  macs = costs.conv_macs(program.trace(*arguments).jaxpr)
  return 2.0 * macs * devices.num_devices  # the jaxpr is that of one chip


def refused_memory(message: str, chip: Chip) -> dict[str, Any]:
  """Memory of a program that does not fit, from the compiler's error message."""
  unit = {'K': 2**10, 'M': 2**20, 'G': 2**30, 'T': 2**40}
  # 'Memory required for HLO temporaries (39.06G) exceeds available HBM (15.75G)'.
  found = re.findall(r'\b([\d.]+)([KMGT])\b', message)
  sizes = [float(number) * unit[letter] for number, letter in found[:2]]
  needed, usable = sizes if len(sizes) == 2 else (None, None)
  return {'peak': needed, 'usable': usable, 'hbm': chip.hbm_bytes, 'fits': False}


def abstract_batch(config: Any) -> dict[str, jax.ShapeDtypeStruct]:
  """Shapes and types of a batch of the pipeline, on the config's canvas."""
  count, boxes = config.batch_size, config.data.max_boxes
  fields = {
    'images': ((*config.data.canvas, 3), np.uint8),
    'image_sizes': ((2,), np.int32),
    'boxes': ((boxes, 4), np.float32),
    'labels': ((boxes,), np.int32),
    'valid': ((boxes,), np.bool_),
    'image_ids': ((), np.int32),
    'scales': ((2,), np.float32),
    'original_sizes': ((2,), np.int32),
    'dropped_boxes': ((), np.int32),
  }
  return {
    name: jax.ShapeDtypeStruct((count, *shape), dtype)
    for name, (shape, dtype) in fields.items()
  }


def _program(name: str, config: Any, devices: DataParallel) -> tuple[Any, tuple]:
  """A jitted program and its arguments: shapes and shardings without values."""
  detector = models.build_detector(config)

  def first_state(key):
    return step.create_state(detector.init(key, jnp.zeros((1, 64, 64, 3))), config)

  place = lambda spec: (
    lambda x: jax.ShapeDtypeStruct(
      x.shape, x.dtype, sharding=jax.NamedSharding(devices.mesh, spec)
    )
  )
  state = jax.tree.map(
    place(jax.P()), jax.eval_shape(first_state, jax.random.key(config.seed))
  )
  batch = jax.tree.map(place(jax.P(AXIS)), abstract_batch(config))
  if name == 'evaluate':
    predict = devices.predict(evaluator.make_predict(detector, config))
    return predict, (state.variables(), batch)
  train_step = step.make_train_step(detector, config, steps_per_epoch=_STEPS_PER_EPOCH)
  return devices.update(train_step), (state, batch)


def _described(config: Any, where: Slice) -> dict[str, Any]:
  """The config, the slice and the versions."""
  return {
    'topology': where.name,
    'chips': len(where.devices),
    'images_per_chip': config.batch_size // len(where.devices),
    'canvas': list(config.data.canvas),
    'backbone': f'{config.model.backbone.kind} {config.model.backbone.depth}',
    'dtype': config.model.dtype,
    'remat': list(config.model.remat),
    'accumulate': config.accumulate,
    'jax': jax.__version__,
    'libtpu': version('libtpu'),
  }
