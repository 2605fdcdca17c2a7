"""Cases of benchmark.py on exported programs."""

import functools
import importlib.util
import pathlib
import tempfile
from collections.abc import Callable, Iterator

import jax

from gfl_jax import models
from gfl_jax.export import manifest, onnx, programs, stablehlo
from gfl_jax.weights.trained import Trained
from scripts.benchmarks import cases


def exports(options: cases.Options, *, name: str) -> Iterator[dict]:
  """A batch in numpy to detections in numpy, by the jitted model and by each export.

  The parameters are random, so no score would pass the threshold. It is 0 here, so more
  candidates take part in NMS than with a trained detector.
  """
  config, side, size = cases.network(name, options.dtype)
  config.data.canvas, config.decode.score_threshold = (side, side), 0.0
  variables = models.init_variables(models.build_detector(config), jax.random.key(0))
  count = config.model.num_classes
  names, ids = tuple(map(str, range(count))), tuple(range(count))
  trained = Trained(config.lock(), jax.device_get(variables), names, ids, {})
  batch = cases.random_batch(config, (side, side), size)
  batch = {key: batch[key] for key in manifest.INPUTS}

  formats = {'stablehlo': stablehlo}
  if importlib.util.find_spec('onnx') and importlib.util.find_spec('onnxruntime'):
    formats['onnx'] = onnx
  with tempfile.TemporaryDirectory() as folder:
    built = {'jitted': programs.jitted(trained)}
    for key, module in formats.items():
      part = pathlib.Path(folder) / key
      part.mkdir()
      module.write(onnx.in_float32(trained) if key == 'onnx' else trained, part)
      built[key] = module.load(part, manifest.read(part))
    calls = {key: functools.partial(run, batch) for key, run in built.items()}
    lines = cases.interleaved(calls, options.repeats)
  for key, times in lines.items():
    dtype = 'float32' if key == 'onnx' else options.dtype
    ratio = times['median_ms'] / lines['jitted']['median_ms']
    yield {
      'variant': f'{key}, {dtype}, batch {size}, {side} px',
      **times,
      'times_jitted': round(ratio, 3),
    }


CASES: dict[str, Callable[[cases.Options], Iterator[dict]]] = {
  f'export/{name}': functools.partial(exports, name=name) for name in cases.NETWORKS
}
