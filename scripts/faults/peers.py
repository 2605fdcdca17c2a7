"""Rows of inject.py on several processes."""

import itertools
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tqdm

from scripts.faults.process_group import POLL_SECONDS, ProcessGroup, free_port
from scripts.faults.runs import SCRIPTS, Outcome, Runs, steps

_LIMIT_SECONDS = 300  # for a start; it takes much less
_GOAL_SECONDS = 30
_WORKER = SCRIPTS.parent / 'tests' / 'multihost' / 'host_worker.py'
# The line that names the failed process.
_NAMED = re.compile(
  r'error: no (heartbeat|progress|answer) for \d+ s from .*(process|coordinator)'
  r'|error: process \d+ has ended'
  r'|by jax: process 0, the coordinator, has ended'
)
_REPORTER_SECONDS = 5  # for the exit reporter, after the end of a process
_FAULTS = {'killed': signal.SIGKILL, 'stopped': signal.SIGSTOP, 'stuck': None}


def peers(runs: Runs) -> dict[str, Any]:
  """The last or first of 2 or 4 processes is killed, stopped or stuck."""
  cases = list(itertools.product((2, 4), ('last', 'first'), _FAULTS)) * 2
  held, seconds, failures = 0, {}, []
  for number, (count, who, fault) in enumerate(tqdm.tqdm(cases, 'peers')):
    longest, words = _one(runs, f'peers_{number}', count, who == 'last', fault)
    name = f'{fault} {who} of {count}'
    seconds[name] = max(seconds.get(name, 0), round(longest, 1))
    if words is None and longest < _GOAL_SECONDS:
      held += 1
    else:
      failures.append(f'{name}: {longest:.1f} s, {words}')
  figures = {'longest until the survivors have ended, s': seconds}
  return {'tries': len(cases), 'held': held, 'figures': figures, 'failures': failures}


def _one(
  runs: Runs, name: str, count: int, is_last: bool, fault: str
) -> tuple[float, str | None]:
  """Seconds until all survivors have ended, and what is wrong with how they did."""
  folder = runs.folder / name
  folder.mkdir()
  number = count - 1 if is_last else 0
  if fault == 'stuck':
    (folder / f'stuck_{number}').touch()
  command = [str(_WORKER), str(folder), str(folder), 'run_until_ended']
  path = {'PYTHONPATH': str(SCRIPTS.parent)}
  with ProcessGroup(command, count, folder / 'logs', environment=path) as group:
    words = 'stuck now' if fault == 'stuck' else 'under way'
    group.wait_for_text(number, words, _LIMIT_SECONDS)
    began = time.monotonic()
    if which := _FAULTS[fault]:
      group.signal(number, which)
    survivors = [i for i in range(count) if i != number]
    try:
      statuses = group.wait(_LIMIT_SECONDS, survivors)
    except TimeoutError as error:
      return float(_LIMIT_SECONDS), str(error)[:200]
    seconds = time.monotonic() - began
    if any(statuses[i] == 0 for i in survivors):
      return seconds, f'exit statuses {statuses}'
    limit = time.monotonic() + _REPORTER_SECONDS
    silent = survivors
    while silent and time.monotonic() < limit:
      silent = [i for i in silent if not _NAMED.search(group.text(i))]
      time.sleep(POLL_SECONDS)
    return seconds, f'{silent} do not name it' if silent else None


def restarts(runs: Runs) -> dict[str, Any]:
  """Two training processes are killed in turn, and started again."""
  wanted, _ = _kept_training(runs, runs.folder / 'kept', kills=())
  outcome, output = _kept_training(runs, runs.folder / 'kept_killed', kills=(1, 0))
  continued = [int(step) for step in re.findall(r'Continuing from step (\d+)', output)]
  held = outcome == wanted and len(continued) >= 2
  return {
    'tries': 1,
    'held': int(held),
    'figures': {'continued from steps': continued},
    'failures': [] if held else [output[-1000:]],
  }


def _kept_training(
  runs: Runs, workdir: Path, kills: Sequence[int]
) -> tuple[Outcome, str]:
  """The end of a run of two processes, and what the first has printed."""
  workdir.mkdir()
  port, shells = free_port(), []
  environment = os.environ | {'PYTHON': sys.executable, 'JAX_NUM_CPU_DEVICES': '1'}
  command = ['sh', str(SCRIPTS / 'keep_training.sh'), *runs.flags(workdir)]
  command += [f'--coordinator=127.0.0.1:{port}', '--num_processes=2']
  try:
    for number in range(2):
      with (workdir / f'stderr_{number}.txt').open('w') as log:
        shells.append(
          subprocess.Popen(
            [*command, f'--process_id={number}'],
            stdout=log,
            stderr=log,
            env=environment,
            start_new_session=True,
          )
        )
    for number in kills:
      newest = (steps(workdir / 'checkpoints') or [0])[-1]
      _wait(lambda newest=newest: (steps(workdir / 'checkpoints') or [0])[-1] > newest)
      children = subprocess.check_output(['pgrep', '-P', str(shells[number].pid)])
      os.kill(int(children.split()[0]), signal.SIGKILL)
    _wait(lambda: all(shell.poll() is not None for shell in shells))
  finally:
    for shell in shells:
      if shell.poll() is None:
        os.killpg(shell.pid, signal.SIGKILL)
        shell.wait()
  return Outcome(workdir), (workdir / 'stderr_0.txt').read_text(errors='replace')


def _wait(condition: Callable[[], object]) -> None:
  limit = time.monotonic() + 2 * _LIMIT_SECONDS
  while not condition():
    if time.monotonic() > limit:
      raise TimeoutError(f'nothing for {2 * _LIMIT_SECONDS} s')
    time.sleep(POLL_SECONDS)


def one_full_disk(runs: Runs) -> dict[str, Any]:
  """Process 1 of 2 cannot write a file of a step, then process 0 no folder."""
  folder = runs.folder / 'one_full_disk'
  command = [str(SCRIPTS / 'faults' / 'save_worker.py'), str(folder)]
  path = {'PYTHONPATH': str(SCRIPTS.parent)}
  with ProcessGroup(command, 2, folder / 'logs', environment=path) as group:
    statuses = group.wait(_LIMIT_SECONDS)
    printed = [group.text(i) for i in range(2)]
  agreed = all(
    'Step 2 could not be saved (process 1: File too large)' in text
    and 'Step 3 could not be saved (process 0: No space left on device)' in text
    and 'stored: [3, 4]' in text
    for text in printed
  )
  held = statuses == [0, 0] and agreed
  return {
    'tries': 1,
    'held': int(held),
    'failures': [] if held else [text[-1000:] for text in printed],
  }
