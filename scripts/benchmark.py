"""Measures speed and memory; prints one JSON line per case.

  python scripts/benchmark.py
  python scripts/benchmark.py losses step/demo --repeats=50 --out=FILE.jsonl

Cases (without any, all are run; `step` stands for all that begin with step/):
  step/r50, step/r18, step/demo   forward, backward and update; R-50 of batch 2 at 512
                                  px, R-18 with FPN-128 of batch 8 at 256 px, the demo's
                                  network of batch 16 at 128 px
  inference/r50, /r18, /demo      the same networks with decoding and NMS
  export/r50, /r18, /demo         the jitted model beside its exports to StableHLO and
                                  ONNX, with the copies from and to the host
  losses      the objective and its gradient, beside the usual dense form
  assign      ATSS at 800 x 1333, 7 and 100 boxes, 1 and 16 images
  decode      a batch of predictions at 800 x 1333 to detections
  nms         1,000 candidates to 100, batch 8
  input/640, input/1333   JPEGs to batches of 16, resized to fit 640 x 640 or 800 x
                          1333, beside a bare loop of OpenCV's decoding and resizing;
                          drawn images of 640 x 480, or those of --photographs
  input/cached            batches of 640 x 640 from memory
  input/memory            memory of the process over 20 epochs of reading
  evaluate    COCO metrics of 5,000 images x 100 detections, 80 classes
  switches    step/demo in processes with and without the launcher's settings
  study       a five-row study of beta on the demo, beside the same five runs one by
              one; takes minutes

The first line, case 'machine', describes the machine: processor, cores, versions,
settings, and `matmul_gflops` of float32, with which speeds of different machines can be
compared. Each other line has `case`, `variant`, `median_ms`, `min_ms`, `p90_ms`,
`repeats` and `load` (the number of processes that wanted to run in the last minute).
Lines of programs also have `compile_s`, `temp_mb` (memory beside inputs and outputs)
and, on a GPU or TPU, `peak_mb` (the most memory of the process so far). Everything runs
on one device. Progress goes to stderr.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from collections.abc import Sequence

from absl import app, flags

_REPEATS = flags.DEFINE_integer('repeats', 20, 'Timed runs of each case.', 1)
_OUT = flags.DEFINE_string('out', None, 'File that gets the lines, too.')
_DTYPE = flags.DEFINE_enum(
  'dtype', 'float32', ['float32', 'bfloat16'], 'model.dtype, in step and inference.'
)
_PHOTOGRAPHS = flags.DEFINE_string(
  'photographs', '', 'input: a folder in COCO form, whose training images are read.'
)
_ORACLE = flags.DEFINE_bool(
  'oracle', False, 'evaluate: compare with pycocotools; takes a minute.'
)


def select(words: Sequence[str], names: Sequence[str]) -> list[str]:
  """The names of the cases that the command line asks for; all if it has no word.

  Raises:
    app.UsageError: a word that is no case and begins none.
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
