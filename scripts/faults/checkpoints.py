"""Rows of inject.py on stored files: damage, and restoring into wrong states."""

import contextlib
import itertools
import logging
import random
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tqdm

from gfl_jax import models
from gfl_jax.checkpointing import checksums
from gfl_jax.checkpointing.manager import Checkpoints, DamagedCheckpointError
from gfl_jax.training import run_folder, step
from gfl_jax.weights.trees import named_leaves
from scripts.faults.runs import Runs, steps, stored_arrays

_FOUND, _HARMLESS = 'found, step before restored', 'harmless, bit-equal'


def damage(runs: Runs, tries: int) -> dict[str, Any]:
  """Each file of the newest step in turn: a bit flipped, cut in half, or deleted."""
  runs.straight()
  source = runs.folder / 'straight_1' / 'checkpoints'
  before, newest = steps(source)[-2:]
  true = {n: stored_arrays(source / str(n)) for n in (before, newest)}
  target = abstract_state(run_folder.load_config(source.parent))
  names = [x.relative_to(source) for x in sorted((source / str(newest)).rglob('*'))]
  names = [name for name in names if (source / name).is_file()]
  faults = itertools.cycle(itertools.product(names, _DAMAGES))
  rng, counts, failures = random.Random(0), Counter(), []
  copy = runs.folder / 'damaged' / 'checkpoints'
  for name, kind in tqdm.tqdm(list(itertools.islice(faults, tries)), 'damage'):
    shutil.rmtree(copy.parent, ignore_errors=True)
    for number in (before, newest):
      shutil.copytree(source / str(number), copy / str(number))
    _DAMAGES[kind](copy / name, rng)
    try:
      with silent(), Checkpoints(copy) as checkpoints:
        state, number = checkpoints.restore_newest(target) or (None, None)
    except (ValueError, OSError) as error:
      counts['ended in an error'] += 1
      failures.append(f'{kind} of {name}: {str(error)[:100]}')
      continue
    if number is None:
      counts['started from the beginning'] += 1
      failures.append(f'{kind} of {name}: nothing found')
      continue
    found = checksums.on_host(state)
    equal = all(np.array_equal(found[x], true[number][x]) for x in true[number])
    result = _FOUND if number == before else _HARMLESS
    counts[result if equal else 'silently wrong'] += 1
    if not equal:
      failures.append(f'{kind} of {name}')
  shutil.rmtree(copy.parent)
  return {
    'tries': tries,
    'held': counts[_FOUND] + counts[_HARMLESS],
    'figures': dict(counts) | {'files': len(names)},
    'failures': failures[:10],
  }


def _flip(file: Path, rng: random.Random) -> None:
  content = bytearray(file.read_bytes())
  if content:
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
  file.write_bytes(content)


_DAMAGES: dict[str, Callable[[Path, random.Random], Any]] = {
  'bit': _flip,
  'truncation': lambda file, rng: file.write_bytes(
    file.read_bytes()[: file.stat().st_size // 2]
  ),
  'deletion': lambda file, rng: file.unlink(),
}


def wrong_states(runs: Runs) -> dict[str, Any]:
  """A checkpoint is restored into states of other shapes, dtypes, names and models."""
  runs.straight()
  folder = runs.folder / 'straight_1'
  config = run_folder.load_config(folder)
  refused, failures = 0, []
  cases = list(_wrong_states(config))
  with silent(), Checkpoints(folder / 'checkpoints', read_only=True) as checkpoints:
    for name, leaf, state in cases:
      try:
        checkpoints.restore(state, checkpoints.steps[-1])
        failures.append(f'{name}: restored')
      except DamagedCheckpointError as error:
        failures.append(f'{name}: taken for damage: {str(error)[:100]}')
      except ValueError as error:
        named = leaf in str(error)
        refused += named
        failures += [] if named else [f'{name}: {leaf} is not named']
    checkpoints.restore(abstract_state(config), checkpoints.steps[-1])  # works
  return {
    'tries': len(cases),
    'held': refused,
    'figures': {'cases': [name for name, _, _ in cases]},
    'failures': failures,
  }


def _wrong_states(config) -> Iterator[tuple[str, str, Any]]:
  """(what differs, a leaf that the error must name, an abstract state)."""
  right = abstract_state(config)
  array = jax.ShapeDtypeStruct
  for part in ('params', 'opt_state', 'ema'):
    leaves = {k: x for k, x in named_leaves(right).items() if k.startswith(part)}
    name = next(k for k, x in leaves.items() if len(x.shape) == 4)
    x = leaves[name]
    for what, other in {
      'shape': array((*x.shape[:-1], x.shape[-1] + 1), x.dtype),
      'transposed': array((*x.shape[2:], *x.shape[:2]), x.dtype),
      'flat': array((int(np.prod(x.shape)),), x.dtype),
      'bfloat16': array(x.shape, jnp.bfloat16),
      'int32': array(x.shape, jnp.int32),
    }.items():
      yield f'{part}: {what}', name, _replaced(right, name, other)
  params = right.params
  head = params['head']
  first = next(iter(head))
  for what, changed, leaf in (
    ('key missing', {k: v for k, v in head.items() if k != first}, first),
    ('key extra', head | {'more': array((3,), jnp.float32)}, 'params.head.more'),
    (
      'key renamed',
      {(k if k != first else 'renamed'): v for k, v in head.items()},
      'params.head.renamed',
    ),
  ):
    yield what, leaf, right.replace(params=params | {'head': changed})
  yield 'no running average', 'ema.', right.replace(ema={})
  for what, leaf, change in (
    ('class count', 'class_output', {'model.num_classes': 7}),
    ('more bins', 'box_output', {'box.num_bins': 17}),
    ('deeper backbone', 'backbone', {'model.backbone.depth': 18}),
    ('wider backbone', 'backbone', {'model.backbone.widths': (16, 16, 32, 32)}),
    ('other stem', 'backbone', {'model.backbone.stem': 'conv7'}),
    ('wider neck', 'neck', {'model.neck.channels': 16}),
    ('longer head', 'head', {'model.head.num_convs': 2}),
    ('other optimizer', 'opt_state', {'optimizer.kind': 'sgd'}),
  ):
    other = config.copy_and_resolve_references()
    with other.unlocked():
      other.update_from_flattened_dict(change)
    yield what, leaf, abstract_state(other)


def _replaced(tree: Any, name: str, leaf: Any) -> Any:
  names = iter(named_leaves(tree))
  return jax.tree.map(lambda x: leaf if next(names) == name else x, tree)


def abstract_state(config) -> Any:
  """Shapes and dtypes of a config's state; nothing is computed."""
  detector = models.build_detector(config)

  def create():
    images = jnp.zeros((1, 64, 64, 3))
    variables = detector.init(jax.random.key(0), images, train=False)
    return step.create_state(variables, config)

  one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=one),
    jax.eval_shape(create),
  )


def pause(runs: Runs) -> dict[str, Any]:
  """How long the loop waits for a save of a state as large as R-50's with momentum."""
  shapes = [(3, 3, 256, 256)] * 48 + [(1, 1, 1024, 512)] * 60 + [(256,)] * 300
  random_like = lambda shape: jax.random.normal(jax.random.key(0), shape)
  state = {str(i): random_like(shape) for i, shape in enumerate(shapes)}
  change = jax.jit(lambda x: jax.tree.map(lambda y: y + 1, x), donate_argnums=0)
  waited, on_disk, sums = [], [], []
  with Checkpoints(runs.folder / 'pause') as checkpoints:
    for number in tqdm.trange(5, desc='saves'):
      state = jax.block_until_ready(change(state))
      began = time.monotonic()
      checkpoints.save(number, state)
      waited.append(time.monotonic() - began)
      checkpoints.wait()
      on_disk.append(time.monotonic() - began)
      arrays = checksums.on_host(state)
      began = time.monotonic()
      checksums.crc32(arrays)
      sums.append(time.monotonic() - began)
  shutil.rmtree(runs.folder / 'pause')
  megabytes = sum(x.nbytes for x in jax.tree.leaves(state)) / 1e6
  seconds = {
    'loop waits': waited,
    'checksums, in the background': sums,
    'until on disk': on_disk,
  }
  return {
    'tries': 5,
    'held': sum(x < y / 2 for x, y in zip(waited, on_disk, strict=True)),
    'figures': {'MB': round(megabytes)}
    | {f'{k}, median s': round(float(np.median(v)), 2) for k, v in seconds.items()},
    'failures': [],
  }


@contextlib.contextmanager
def silent() -> Iterator[None]:
  """No log lines: hundreds of warnings are expected here."""
  logging.disable(logging.CRITICAL)
  try:
    yield
  finally:
    logging.disable(logging.NOTSET)
