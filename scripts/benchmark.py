"""Measures speed and memory; prints one JSON line per case.

  python scripts/benchmark.py
  python scripts/benchmark.py losses step/demo --repeats=50 --out=FILE.jsonl

Cases (a word stands for all cases that begin with it; without any, all are run):
  step/r50, step/r18, step/demo   forward, backward and update; R-50 of batch 2 at 512
                                  px, R-18 with FPN-128 of batch 8 at 256 px, the demo's
                                  network of batch 16 at 128 px
  inference/r50, /r18, /demo      the same networks with decoding and NMS
  export/r50, /r18, /demo         the same as exported to StableHLO and ONNX, beside the
                                  jitted model; with the copies from and to the host
  losses      the objective and its gradient, and the usual dense form, alternating
  assign      ATSS at 800 x 1333, 7 and 100 boxes, 1 and 16 images
  decode      a batch of predictions at 800 x 1333 to detections
  nms         1,000 candidates to 100, batch 8
  input/640, input/1333   JPEGs to batches of 16, resized to fit 640 x 640 or 800 x
                          1333, beside a bare loop of OpenCV's decoding and resizing;
                          they are drawn, 640 x 480, or those of --photographs
  input/cached            batches of 640 x 640 from memory
  input/memory            memory of the process over 20 epochs of reading
  evaluate    COCO metrics of 5,000 images x 100 detections, 80 classes
  switches    step/demo in processes with and without the launcher's settings
  study       a five-row study of beta on the demo, and its runs one by one; minutes

The first line, case 'machine', says where: processor, cores, versions, settings, and
`matmul_gflops` of float32, by which speeds of different machines can be compared. Each
other line has `case`, `variant`, `median_ms`, `min_ms`, `p90_ms`, `repeats` and `load`
(processes that wanted to run in the last minute); programs also `compile_s`, `temp_mb`
(what they need beside inputs and outputs) and, on a GPU or TPU, `peak_mb` (of the
process so far). Everything runs on one device. Progress goes to stderr.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from collections.abc import Sequence

from absl import app, flags

_REPEATS = flags.DEFINE_integer('repeats', 20, 'Timed runs of each case.', 1)
_OUT = flags.DEFINE_string('out', None, 'File to write the lines to, too.')
_DTYPE = flags.DEFINE_enum(
  'dtype', 'float32', ['float32', 'bfloat16'], "The trunk's, in step and inference."
)
_PHOTOGRAPHS = flags.DEFINE_string(
  'photographs', '', 'input: a folder in COCO form; its training images are read.'
)
_ORACLE = flags.DEFINE_bool('oracle', False, 'evaluate: with pycocotools, a minute.')


def select(words: Sequence[str], names: Sequence[str]) -> list[str]:
  """The names of cases that a command line's words stand for; all if there is none.

  Raises:
    app.UsageError: a word that stands for none.
  """
  for word in words:
    if not any(name.split('/')[0] == word or name == word for name in names):
      raise app.UsageError(f'no case {word!r}; there are: {", ".join(names)}')
  return [n for n in names if not words or n in words or n.split('/')[0] in words]


def main(argv: list[str]) -> None:
  """Checks the words, runs their cases and prints."""
  from scripts.benchmarks import cases, exports, host, inputs, machine

  modules = cases, exports, inputs, host
  functions = {name: case for module in modules for name, case in module.CASES.items()}
  names = select(argv[1:], list(functions))
  options = cases.Options(
    _REPEATS.value, _DTYPE.value, _ORACLE.value, _PHOTOGRAPHS.value
  )
  if _OUT.value:
    open(_OUT.value, 'w').close()
  for name in ['machine', *names]:
    print(f'{name} ...', file=sys.stderr)
    case = functions[name] if name != 'machine' else cases.machine
    for line in case(options):
      machine.print_line({'case': name, **line}, _OUT.value)


if __name__ == '__main__':
  from gfl_jax import launch

  launch.run(main)
