"""Training processes for inject.py, and the files that they leave."""

import contextlib
import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

from gfl_jax import files
from gfl_jax.weights.trees import named_leaves

SCRIPTS = Path(__file__).parents[1]
SAVE_EVERY = 4  # steps
NUM_STEPS = 160
_LIMIT_SECONDS = 1800  # far above what is needed: the machine may be busy
_SETTINGS = {
  'batch_size': 8,
  'epochs': NUM_STEPS / 8,
  'eval_every_epochs': NUM_STEPS / 8,
  'log_every_steps': 2,
  'checkpoint_every_steps': SAVE_EVERY,
  'data.name': 'file',
  'data.canvas': (64, 64),
  'data.short_side': (64, 64),
  'data.max_long_side': 64,
  'box_loss.max_positives_per_image': 32,
  'model.backbone.widths': (8, 8, 16, 16),
  'model.backbone.norm_groups': 4,
  'model.neck.channels': 8,
  'model.head.channels': 8,
  'model.head.num_convs': 1,
  'model.head.norm_groups': 4,
}


class Runs:
  """Starts runs of one small config; they share data and compiled programs."""

  def __init__(self, folder: Path):
    """Draws 64 + 8 scenes into `folder`, the parent folder of the runs."""
    self.folder = folder
    data = folder / 'scenes.npz'
    if not data.exists():
      command = ['prepare_data.py', '--config=configs/demo_shapes.py', f'--out={data}']
      sizes = {'num_train': 64, 'num_validation': 8, 'data_dir': folder / 'datasets'}
      command += [f'--config.data.{name}={value}' for name, value in sizes.items()]
      subprocess.run(
        [sys.executable, SCRIPTS / command[0], *command[1:]],
        cwd=SCRIPTS.parent,
        check=True,
        capture_output=True,
      )
    self._settings = _SETTINGS | {'data.path': data}

  def start(
    self,
    workdir: Path,
    settings: dict | None = None,
    *,
    devices: int = 1,
    before: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
  ) -> 'Run':
    """Starts scripts/train.py on a folder.

    Args:
      workdir: the folder of a new run, or of one to continue.
      settings: config fields that differ.
      devices: number of virtual devices.
      before: words of the command line before Python.
      environment: on top of this process's own.
    """
    command = [*before, sys.executable, str(SCRIPTS / 'train.py')]
    command += self.flags(workdir, settings)
    return Run(command, workdir, devices, environment or {})

  def flags(self, workdir: Path, settings: dict | None = None) -> list[str]:
    """Flags of scripts/train.py for a run in a folder; settings as in `start`."""
    values = self._settings | (settings or {})
    return [
      '--config=configs/demo_shapes.py',
      f'--workdir={workdir}',
      *(f'--config.{name}={value}' for name, value in values.items()),
    ]

  def evaluate(self, workdir: Path) -> tuple[int, str]:
    """Exit status and output of scripts/evaluate.py on a run's folder."""
    done = subprocess.run(
      [sys.executable, SCRIPTS / 'evaluate.py', f'--run={workdir}'],
      cwd=SCRIPTS.parent,
      capture_output=True,
      text=True,
    )
    return done.returncode, done.stdout + done.stderr

  def straight(self, name: str = 'straight', *, devices: int = 1) -> 'Outcome':
    """The outcome of the run without a fault; it is run once."""
    workdir = self.folder / f'{name}_{devices}'
    if not (workdir / 'report.html').exists():
      self.start(workdir, devices=devices).finish()
    return Outcome(workdir)


class Run:
  """A training process."""

  def __init__(
    self,
    command: list[str],
    workdir: Path,
    devices: int,
    environment: Mapping[str, str],
  ):
    self.workdir = workdir
    workdir.mkdir(parents=True, exist_ok=True)
    self._log = workdir / f'stderr_{len(list(workdir.glob("stderr_*")))}.txt'
    flags = os.environ.get('XLA_FLAGS', '')
    if devices > 1:
      flags += f' --xla_force_host_platform_device_count={devices}'
    with self._log.open('w') as log:
      self.process = subprocess.Popen(
        command,
        stdout=log,
        stderr=log,
        cwd=SCRIPTS.parent,
        env=os.environ | {'XLA_FLAGS': flags, **environment},
        start_new_session=True,
      )

  def __enter__(self) -> 'Run':
    return self

  def __exit__(self, *error) -> None:
    self.kill()

  @property
  def output(self) -> str:
    """What it has printed so far."""
    return self._log.read_text(errors='replace')

  @property
  def checkpoints(self) -> Path:
    return self.workdir / 'checkpoints'

  def wait_for(
    self, condition: Callable[[], object], seconds: float = _LIMIT_SECONDS
  ) -> bool:
    """Whether a condition came true before the process ended; checked each ms.

    Raises:
      TimeoutError: the process still runs.
    """
    limit = time.monotonic() + seconds
    while time.monotonic() < limit:
      if condition():
        return True
      if self.process.poll() is not None:
        return bool(condition())
      time.sleep(0.001)
    raise TimeoutError(
      f'{self.workdir}: nothing for {seconds} s\n{self.output[-2000:]}'
    )

  def wait_for_save(self, number: int) -> bool:
    """Whether `number` more checkpoints were stored before the process ended."""
    first = steps(self.checkpoints)[-1:] or [0]
    return self.wait_for(
      lambda: (steps(self.checkpoints)[-1:] or [0])[0] >= first[0] + number * SAVE_EVERY
    )

  def kill(self) -> bool:
    """SIGKILL to the process and its children; whether that was during a save."""
    if self.process.poll() is None:
      os.killpg(self.process.pid, signal.SIGKILL)
      self.process.wait()
    return bool(unfinished(self.checkpoints))

  def finish(self, *, seconds: float = _LIMIT_SECONDS) -> 'Outcome':
    """Waits for the end of a run that succeeds.

    Raises:
      RuntimeError: it did not succeed; with the end of its output.
    """
    if self.process.wait(seconds) != 0:
      raise RuntimeError(
        f'{self.workdir} ended with {self.process.returncode}:\n{self.output[-3000:]}'
      )
    return Outcome(self.workdir)


class Outcome:
  """The last checkpoint and the log of a run, for comparison."""

  def __init__(self, workdir: Path):
    self.step = steps(workdir / 'checkpoints')[-1]
    arrays = stored_arrays(workdir / 'checkpoints' / str(self.step))
    self.finite = all(np.isfinite(x).all() for x in arrays.values())
    digest = hashlib.sha256()
    for name in sorted(arrays):
      digest.update(f'{name} {arrays[name].dtype} {arrays[name].shape}'.encode())
      digest.update(np.ascontiguousarray(arrays[name]).tobytes())
    self.sha256 = digest.hexdigest()
    lines = files.read_json_lines(workdir / 'metrics.jsonl')
    speed = {'images_per_second', 'seconds'}
    self.metrics = [{k: v for k, v in x.items() if k not in speed} for x in lines]

  def __eq__(self, other) -> bool:
    return self.same_end(other) and self.metrics == other.metrics

  def same_end(self, other: 'Outcome') -> bool:
    """Equal arrays and evaluations; a stop adds a line to the log."""
    evaluations = lambda run: [x for x in run.metrics if x['kind'] == 'eval']
    return self.sha256 == other.sha256 and evaluations(self) == evaluations(other)


def stored_arrays(step_folder: Path) -> dict[str, np.ndarray]:
  """All arrays of a stored step by name, read without this package's code."""
  with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
    folder = step_folder / 'state'
    metadata = reader.metadata(folder).item_metadata
    tree = getattr(metadata, 'tree', metadata)
    as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
    return named_leaves(
      reader.restore(folder, args=ocp.args.PyTreeRestore(restore_args=as_numpy))
    )


def steps(checkpoints: Path) -> list[int]:
  """Steps whose saves were finished, oldest first."""
  return sorted(int(x.name) for x in checkpoints.glob('*') if x.name.isdigit())


def unfinished(checkpoints: Path) -> list[Path]:
  """Folders of saves that are not finished."""
  return list(checkpoints.glob('*orbax-checkpoint-tmp*'))


@contextlib.contextmanager
def filled(folder: Path, chunk: int = 4096) -> Iterator[None]:
  """Fills the file system of a folder to the last byte, and frees it again."""
  file = folder / 'filling'
  try:
    with contextlib.suppress(OSError), file.open('wb', buffering=0) as out:
      while True:
        out.write(bytes(chunk))
    yield
  finally:
    file.unlink(missing_ok=True)
