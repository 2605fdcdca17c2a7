"""Cases of benchmark.py that run on the device. Each is a generator of JSON lines."""

import functools
import os
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from configs import demo_shapes, gfl_r50_fpn_1x_coco
from gfl_jax import models
from gfl_jax.evaluation import decode, evaluator
from gfl_jax.ops import assignment, nms, points
from gfl_jax.training import objective, parallel, step
from scripts.benchmarks import naive
from scripts.benchmarks.machine import facts


class Options(NamedTuple):
  """The flags of benchmark.py.

  Attributes:
    repeats: timed runs of each case.
    dtype: model.dtype of the networks.
    oracle: whether to compare COCO metrics with pycocotools.
    photographs: a folder in COCO form, or ''.
  """

  repeats: int
  dtype: str
  oracle: bool
  photographs: str


def interleaved(functions: Mapping[str, Callable], repeats: int) -> dict[str, dict]:
  """Times functions in turn, in a new random order each time.

  So a busy moment of the machine, and the caches and threads that one function leaves
  behind, affect all of them. Each is called without arguments, twice before time is
  measured (the first calls touch new memory). Its result is waited for.
  """
  seconds: dict[str, list[float]] = {name: [] for name in functions}
  rng = np.random.default_rng(0)
  for number in range(-2, repeats):
    for name in rng.permutation(list(functions)):
      start = time.perf_counter()
      jax.block_until_ready(functions[name]())
      if number >= 0:
        seconds[name].append(time.perf_counter() - start)
  return {name: spread(values) for name, values in seconds.items()}


def spread(seconds: list[float]) -> dict[str, float]:
  """The numbers of a line: median, least and 9th decile of the times, count, load."""
  milliseconds = np.array(seconds) * 1e3
  return {
    'median_ms': round(float(np.median(milliseconds)), 3),
    'min_ms': round(float(milliseconds.min()), 3),
    'p90_ms': round(float(np.quantile(milliseconds, 0.9)), 3),
    'repeats': len(seconds),
    'load': round(os.getloadavg()[0], 2),
  }


def rate(images: int, times: Mapping[str, float]) -> dict[str, float]:
  """Images per second, from the median time of so many images."""
  return {'images_per_s': round(1e3 * images / times['median_ms'], 2)}


def compiled(function: Callable, *arguments) -> tuple[Callable, dict[str, float]]:
  """A jitted function compiled for its arguments, with its time and memory."""
  start = time.perf_counter()
  program = function.lower(*arguments).compile()
  facts = {'compile_s': round(time.perf_counter() - start, 2)}
  memory = program.memory_analysis()
  if memory is not None:
    facts['temp_mb'] = round(memory.temp_size_in_bytes / 1e6, 1)
  return program, facts


def peak() -> dict[str, float]:
  """The most device memory of this process so far, if the device reports it."""
  stats = jax.devices()[0].memory_stats() or {}
  found = stats.get('peak_bytes_in_use')
  return {} if found is None else {'peak_mb': round(found / 1e6, 1)}


def programs(
  functions: Mapping[str, tuple[Callable, tuple]], options: Options
) -> Iterator[dict]:
  """Lines of the pure functions {variant: (function, arguments)}, timed in turn."""
  built = {
    name: compiled(jax.jit(function), *arguments)
    for name, (function, arguments) in functions.items()
  }
  calls = {
    name: functools.partial(program, *functions[name][1])
    for name, (program, _) in built.items()
  }
  for name, times in interleaved(calls, options.repeats).items():
    yield {'variant': name, **times, **built[name][1], **peak()}


def machine(options: Options) -> Iterator[dict]:
  """The machine and its settings, and its speed for a matrix product."""
  device, size = jax.devices()[0], 2048
  matrix = jax.random.normal(jax.random.key(0), (size, size))
  multiply = jax.jit(functools.partial(jnp.matmul, precision='highest'))
  times = interleaved({'': lambda: multiply(matrix, matrix)}, options.repeats)['']
  yield {
    'variant': 'float32 matmul',
    'matmul_gflops': round(2 * size**3 / times['min_ms'] / 1e6, 1),
    **facts(),
    **times,
    'device': f'{device.device_kind} ({device.platform})',
    'GLIBC_TUNABLES': os.environ.get('GLIBC_TUNABLES', ''),
    'XLA_FLAGS': os.environ.get('XLA_FLAGS', ''),
  }


class Network(NamedTuple):
  """A config, the side of its square canvas in pixels, and its batch size."""

  config: Any
  side: int
  batch_size: int


def network(name: str, dtype: str) -> Network:
  """'r50' or 'r18' with the recipe, or 'demo' of configs/demo_shapes.py."""
  if name == 'demo':
    config, side, batch_size = demo_shapes.get_config(), 128, 16
  else:
    config, side, batch_size = gfl_r50_fpn_1x_coco.get_config(), 512, 2
  if name == 'r18':
    side, batch_size = 256, 8
    config.model.backbone.depth = 18
    config.model.neck.channels = config.model.head.channels = 128
  config.model.dtype = dtype
  config.batch_size = batch_size
  return Network(config, side, batch_size)


def random_batch(
  config, canvas: tuple[int, int], size: int, *, mean_boxes: float = 7.0
) -> dict[str, np.ndarray]:
  """Noise with boxes of all sizes; their number has a Poisson distribution."""
  rng = np.random.default_rng(0)
  limit = config.data.max_boxes
  counts = np.minimum(rng.poisson(mean_boxes, size), limit)
  return {
    'images': rng.integers(0, 256, (size, *canvas, 3), np.uint8),
    'image_sizes': np.full((size, 2), canvas, np.int32),
    'boxes': random_boxes(rng, canvas, (size, limit)),
    'labels': rng.integers(0, config.model.num_classes, (size, limit), np.int32),
    'valid': np.arange(limit) < counts[:, None],
    'scales': np.ones((size, 2), np.float32),
    'dropped_boxes': np.zeros(size, np.int32),
  }


def random_boxes(rng, canvas: tuple[int, int], shape: tuple[int, ...]) -> np.ndarray:
  """[*shape, 4] float32 xyxy in the canvas; sides of 1/30 to 2/3 of it, log-uniform."""
  size = np.array(canvas[::-1])
  sides = size * np.exp(rng.uniform(-np.log(30), -np.log(1.5), (*shape, 2)))
  corners = rng.uniform(0, 1, (*shape, 2)) * (size - sides)
  return np.concatenate([corners, corners + sides], axis=-1).astype(np.float32)


def train_step(options: Options, *, name: str) -> Iterator[dict]:
  """The training step, on one device."""
  config, side, batch_size = network(name, options.dtype)
  devices = parallel.DataParallel('jit', jax.devices()[:1])
  detector = models.build_detector(config)
  variables = models.init_variables(detector, jax.random.key(0))
  state = devices.replicate(step.create_state(variables, config))
  batch = devices.split(random_batch(config, (side, side), batch_size))
  update = devices.update(step.make_train_step(detector, config, steps_per_epoch=1000))
  program, facts = compiled(update, state, batch)

  def run():
    nonlocal state
    state, scalars = program(state, batch)
    return scalars

  times = interleaved({name: run}, options.repeats)[name]
  parameters = sum(x.size for x in jax.tree.leaves(variables['params']))
  yield {
    'variant': f'{options.dtype}, batch {batch_size}, {side} px',
    **times,
    **rate(batch_size, times),
    'parameters': parameters,
    **facts,
    **peak(),
  }


def inference(options: Options, *, name: str) -> Iterator[dict]:
  """uint8 images to detections, as in evaluation."""
  config, side, batch_size = network(name, options.dtype)
  detector = models.build_detector(config)
  variables = models.init_variables(detector, jax.random.key(0))
  batch = jax.device_put(random_batch(config, (side, side), batch_size))
  predict = evaluator.make_predict(detector, config)
  variant = f'{options.dtype}, batch {batch_size}, {side} px'
  for line in programs({variant: (predict, (variables, batch))}, options):
    yield line | rate(batch_size, line)


def losses(options: Options) -> Iterator[dict]:
  """Loss and gradient for given logits: 16 images of 8,525 anchors, with ATSS."""
  config, canvas, size = gfl_r50_fpn_1x_coco.get_config(), (640, 640), 16
  anchors = models.canvas_points(config, canvas)
  predictions = random_predictions(config, anchors, size)
  batch = random_batch(config, canvas, size)
  batch = jax.device_put({k: v for k, v in batch.items() if k != 'images'})

  def ours(predictions, batch):
    return objective.detection_loss(predictions, batch, anchors, config)[0]

  def dense(predictions, batch):
    return naive.dense_loss(predictions, batch, anchors, config)

  arguments = predictions, batch
  functions = {
    name: (jax.value_and_grad(function), arguments)
    for name, function in (('ours', ours), ('usual dense form', dense))
  }
  lines = list(programs(functions, options))
  usual = lines[1]
  for line in lines:
    yield line | {
      'times_faster': round(usual['median_ms'] / line['median_ms'], 2),
      'times_less_temp': round(usual['temp_mb'] / line['temp_mb'], 1),
    }


def random_predictions(config, anchors: points.Points, size: int) -> models.Predictions:
  """Normal logits; those of the classes have mean -4, so that most scores are low."""
  keys = jax.random.split(jax.random.key(0))
  shape = (size, len(anchors.strides))
  class_logits = jax.random.normal(keys[0], (*shape, config.model.num_classes)) - 4
  box_logits = jax.random.normal(keys[1], (*shape, 4, config.box.num_bins))
  return models.Predictions(class_logits, box_logits, None)


def assign(options: Options) -> Iterator[dict]:
  """ATSS over the recipe's canvas; boxes all valid."""
  config, canvas = gfl_r50_fpn_1x_coco.get_config(), (800, 1344)
  anchors = models.canvas_points(config, canvas)

  def match(boxes, valid, image_sizes):
    on_image = points.point_validity(anchors, image_sizes)
    one = lambda b, v, p: assignment.atss(b, v, anchors, point_valid=p)
    return jax.vmap(one)(boxes, valid, on_image)

  functions = {}
  for size in (1, 16):
    for count in (7, 100):
      boxes = random_boxes(np.random.default_rng(0), (800, 1333), (size, count))
      arguments = boxes, np.ones((size, count), bool), np.full((size, 2), (800, 1333))
      functions[f'{count} boxes, batch {size}'] = match, jax.device_put(arguments)
  yield from programs(functions, options)


def decode_predictions(options: Options) -> Iterator[dict]:
  """Random logits to detections, with the recipe's thresholds."""
  config, canvas, size = gfl_r50_fpn_1x_coco.get_config(), (800, 1344), 2
  anchors = models.canvas_points(config, canvas)
  run = lambda predictions, sizes: decode.decode_detections(
    predictions, anchors, sizes, config
  )
  predictions = random_predictions(config, anchors, size)
  sizes = np.full((size, 2), (800, 1333), np.int32)
  yield from programs({f'batch {size}': (run, (predictions, sizes))}, options)


def suppress(options: Options) -> Iterator[dict]:
  """NMS of candidates at random places, and in 50 clusters of 20."""
  rng, canvas, size, count = np.random.default_rng(0), (800, 1344), 8, 1000
  repeat = functools.partial(np.repeat, repeats=20, axis=1)
  clustered = repeat(random_boxes(rng, canvas, (size, count // 20)))
  clustered += rng.normal(0, 4, clustered.shape).astype(np.float32)
  classes = rng.integers(0, 80, (size, count), np.int32)
  scores = rng.uniform(0.05, 1, (size, count)).astype(np.float32)
  run = jax.vmap(
    functools.partial(nms.class_aware_nms, iou_threshold=0.6, max_outputs=100)
  )
  candidates = {
    'random': (random_boxes(rng, canvas, (size, count)), scores, classes),
    'clustered': (clustered, scores, repeat(classes[:, : count // 20])),
  }
  functions = {name: (run, jax.device_put(x)) for name, x in candidates.items()}
  yield from programs(functions, options)


NETWORKS = ('r50', 'r18', 'demo')
CASES: dict[str, Callable[[Options], Iterator[dict]]] = {
  **{f'step/{n}': functools.partial(train_step, name=n) for n in NETWORKS},
  **{f'inference/{n}': functools.partial(inference, name=n) for n in NETWORKS},
  'losses': losses,
  'assign': assign,
  'decode': decode_predictions,
  'nms': suppress,
}
