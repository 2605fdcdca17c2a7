"""Rows of inject.py on running training processes."""

import math
import random
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import tqdm

from scripts.faults.runs import Outcome, Run, Runs, filled, steps, unfinished

_CONTINUING = re.compile(r'Continuing from step (\d+)')
_STOPPED = re.compile(r'Stopped at step (\d+)')
_COMPILING = 'Compiling '  # as jax logs it
_CHAIN = 5  # faults that one run gets
_FILLINGS = 3


def kills(runs: Runs, tries: int) -> dict[str, Any]:
  """SIGKILL at random moments, alternately between two saves and during a save."""
  true, rng = runs.straight(), random.Random(0)
  held = in_save = left = 0
  failures = []
  for first in tqdm.trange(0, tries, _CHAIN, desc='kill -9, runs'):
    workdir, newest, ok = runs.folder / f'killed_{first}', 0, True
    for number in range(first, min(first + _CHAIN, tries)):
      with runs.start(workdir) as run:
        ok &= run.wait_for_save(1)
        if number % 2:
          run.wait_for(lambda run=run: unfinished(run.checkpoints))
          time.sleep(rng.uniform(0, 0.1))
        else:
          time.sleep(rng.uniform(0, 0.5))
          run.wait_for(lambda run=run: not unfinished(run.checkpoints))
        in_save += run.kill()
      ok &= _continued(run, newest)
      newest = steps(workdir / 'checkpoints')[-1]
    with runs.start(workdir) as run:
      outcome = run.finish()
    ok &= _continued(run, newest)
    leftovers = unfinished(workdir / 'checkpoints')
    left += len(leftovers)
    if ok and not leftovers and outcome == true:
      held += min(_CHAIN, tries - first)
    else:
      failures.append(f'{workdir.name}: {outcome.step}, {outcome.sha256[:12]}')
  return {
    'tries': tries,
    'held': held,
    'figures': {
      'killed during a save': in_save,
      'between saves': tries - in_save,
      'temporary folders left': left,
    },
    'failures': failures,
  }


def _continued(run: Run, newest: int) -> bool:
  """Whether a run continued from the newest stored step; 0: from none."""
  found = _CONTINUING.search(run.output)
  return (int(found[1]) if found else 0) == newest


def stops(runs: Runs, tries: int) -> dict[str, Any]:
  """SIGTERM at random moments, on one device."""
  return _stop(runs, tries, devices=1, allowed_seconds=10)


def resumes(runs: Runs) -> dict[str, Any]:
  """Preempted at three random steps, on eight virtual devices."""
  return _stop(runs, 3, devices=8, allowed_seconds=math.inf)


def _stop(
  runs: Runs, tries: int, *, devices: int, allowed_seconds: float
) -> dict[str, Any]:
  """SIGTERM; the next start continues the run, which ends as the undisturbed one."""
  true, rng = runs.straight(devices=devices), random.Random(1)
  held, seconds, failures = 0, [], []
  for first in tqdm.trange(0, tries, _CHAIN, desc='SIGTERM, runs'):
    workdir, newest = runs.folder / f'stopped_{devices}_{first}', 0
    for _ in range(first, min(first + _CHAIN, tries)):
      with runs.start(workdir, devices=devices) as run:
        run.wait_for_save(1)
        time.sleep(rng.uniform(0, 0.5))
        began = time.monotonic()
        run.process.send_signal(signal.SIGTERM)
        status = run.process.wait()
        seconds.append(time.monotonic() - began)
      said = _STOPPED.search(run.output)
      stored = steps(workdir / 'checkpoints')[-1]
      stopped = said and int(said[1]) == stored and status == 143
      if stopped and seconds[-1] < allowed_seconds and _continued(run, newest):
        held += 1
      else:
        failures.append(f'{workdir.name}: {status}, {stored}, {seconds[-1]:.1f} s')
      newest = stored
    with runs.start(workdir, devices=devices) as run:
      if not run.finish().same_end(true):
        failures.append(f'{workdir.name}: another end')
        held = 0
  return {
    'tries': tries,
    'held': held,
    'figures': {'exit status': 143, 'longest exit, s': round(max(seconds), 1)},
    'failures': failures,
  }


def again(runs: Runs) -> dict[str, Any]:
  """The same command in another folder."""
  equal = runs.straight() == runs.straight('again')
  steps_done = runs.straight().step
  return {'tries': 1, 'held': int(equal), 'figures': {'steps': steps_done}}


def full_disk(runs: Runs, tries: int) -> dict[str, Any]:
  """The disk with the checkpoints is filled to the last byte, and freed."""
  true, held, failures, seconds = runs.straight(), 0, [], []
  for first in tqdm.trange(0, tries, _FILLINGS, desc='disk full, runs'):
    workdir = runs.folder / f'full_{first}'
    count = min(_FILLINGS, tries - first)
    try:
      seconds += _fill(runs, workdir, count)
      if Outcome(workdir) != true:
        raise RuntimeError('another end')
      held += count
    except RuntimeError as error:
      failures.append(f'{workdir.name}: {error}')
  figures = {'longest until the warning, s': round(max(seconds, default=0), 1)}
  return {'tries': tries, 'held': held, 'figures': figures, 'failures': failures}


def _fill(runs: Runs, workdir: Path, count: int) -> list[float]:
  """Fills the disk of a run `count` times; seconds until each warning."""
  checkpoints, seconds = workdir / 'checkpoints', []
  checkpoints.mkdir(parents=True, exist_ok=True)
  mounted = 'd=$0; mount -t tmpfs -o size=8m tmpfs $d; "$@" && cp -a $d $d.kept'
  before = ('unshare', '-rm', 'bash', '-c', mounted, str(checkpoints))
  with runs.start(workdir, before=before) as run:
    # The mount is seen by the process and its children alone.
    seen = Path(f'/proc/{run.process.pid}/root') / checkpoints.relative_to('/')
    newest = lambda: (steps(seen) or [0])[-1]
    warnings = lambda: run.output.count('could not be saved')
    run.wait_for(newest)
    for number in range(count):
      said, began = warnings(), time.monotonic()
      with filled(seen):
        warned = run.wait_for(lambda said=said: warnings() > said)
        seconds.append(time.monotonic() - began)
        stored = newest()
      if not (warned and stored and run.wait_for(lambda n=stored: newest() > n)):
        raise RuntimeError(f'filling {number}: warned {warned}, newest {stored}')
    if run.process.wait() != 0 or 'Saves that failed before' not in run.output:
      raise RuntimeError(f'status {run.process.returncode}: {run.output[-500:]}')
  checkpoints.rmdir()
  checkpoints.with_name('checkpoints.kept').rename(checkpoints)
  return seconds


def not_finite(runs: Runs) -> dict[str, Any]:
  """A learning rate of 1e18 from step 1 makes the parameters nan."""
  settings = {'optimizer.learning_rate': 1e18, 'schedule.warmup_steps': 1}
  workdir = runs.folder / 'nan'
  with runs.start(workdir, settings | {'checkpoint_every_steps': 1}) as run:
    status = run.process.wait()
  named = re.search(r'error: step (\d+): .*nan.*image ids of the batch', run.output)
  stored = steps(workdir / 'checkpoints')
  finite = not stored or Outcome(workdir).finite
  return {
    'tries': 1,
    'held': int(status == 1 and bool(named) and finite),
    'figures': {'stopped at step': named and int(named[1]), 'stored': stored},
    'failures': [] if named else [run.output[-500:]],
  }


def refusals(runs: Runs) -> dict[str, Any]:
  """Class count, a typo, a batch that the devices cannot share."""
  cases = {
    'num_classes=80': ({'model.num_classes': 80}, 1),
    'did you mean': ({'model.num_clases': 6}, 1),
    'cannot be split over 8 device': ({'batch_size': 12}, 8),
  }
  held, seconds, failures = 0, {}, []
  logged = {'JAX_LOG_COMPILES': '1'}
  with runs.start(runs.folder / 'not_refused', environment=logged) as run:
    if not run.wait_for(lambda: _COMPILING in run.output):
      raise RuntimeError(f'jax does not say {_COMPILING!r}: {run.output[-500:]}')
  for words, (settings, devices) in cases.items():
    began = time.monotonic()
    folder = runs.folder / 'refused'
    with runs.start(folder, settings, devices=devices, environment=logged) as run:
      status = run.process.wait()
    seconds[words] = round(time.monotonic() - began, 1)
    if status == 1 and words in run.output and _COMPILING not in run.output:
      held += 1
    else:
      failures.append(f'{words}: status {status}: {run.output[-300:]}')
  return {
    'tries': len(cases),
    'held': held,
    'figures': {'seconds': seconds},
    'failures': failures,
  }


def not_there(runs: Runs) -> dict[str, Any]:
  """Evaluation without a checkpoint, and a folder that may not be read."""
  empty = runs.folder / 'empty'
  runs.straight()
  subprocess.run(['cp', '-a', runs.folder / 'straight_1', empty], check=True)
  subprocess.run(['rm', '-r', empty / 'checkpoints'], check=True)
  held, failures = 0, []
  for words, before in {
    'holds no checkpoint yet': (),
    # A file in place of the folder: not even root can list it.
    'checkpoints': ('touch', str(empty / 'checkpoints')),
  }.items():
    if before:
      subprocess.run(['rm', '-rf', empty / 'checkpoints'], check=True)
      subprocess.run(before, check=True)
    status, output = runs.evaluate(empty)
    if status == 1 and words in output and 'error:' in output:
      held += 1
    else:
      failures.append(f'{words}: status {status}: {output[-500:]}')
  with runs.start(empty) as run:  # training must not start from the beginning
    status = run.process.wait()
  if status == 1 and 'error:' in run.output:
    held += 1
  else:
    failures.append(f'training: status {status}: {run.output[-500:]}')
  return {'tries': 3, 'held': held, 'failures': failures}
