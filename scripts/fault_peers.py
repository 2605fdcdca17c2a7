"""Rows of fault_drill.py on several processes."""

import itertools
import re
import signal
import time
from typing import Any

import tqdm
from fault_runs import SCRIPTS, Runs
from process_group import POLL_SECONDS, ProcessGroup

_LIMIT_SECONDS = 300  # to start; far above what it takes
_GOAL_SECONDS = 30
_WORKER = SCRIPTS.parent / 'tests' / 'training' / 'host_worker.py'
# The line with who is to blame.
_CLEAR = re.compile(
  r'error: no (sign of life|progress|answer) for \d+ s from .*(process|coordinator)'
  r'|error: process \d+ has ended'
  r'|by jax: process 0, the coordinator, is gone'
)
_WITNESS_SECONDS = 5  # what a shell says after the end of a process is waited for
_FAULTS = {
  'killed': signal.SIGKILL,
  'stopped': signal.SIGSTOP,
  'stuck': None,
}


def peers(runs: Runs) -> dict[str, Any]:
  """The last process, or the first, of 2 and 4 is killed, stopped and gets stuck."""
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
    limit = time.monotonic() + _WITNESS_SECONDS
    vague = survivors
    while vague and time.monotonic() < limit:
      vague = [i for i in vague if not _CLEAR.search(group.text(i))]
      time.sleep(POLL_SECONDS)
    return seconds, f'{vague} do not say why' if vague else None


def one_full_store(runs: Runs) -> dict[str, Any]:
  """Process 1 of 2 cannot write while a step is saved; both try again."""
  folder = runs.folder / 'one_full_store'
  command = [str(SCRIPTS / 'fault_store_worker.py'), str(folder)]
  path = {'PYTHONPATH': str(SCRIPTS.parent)}
  with ProcessGroup(command, 2, folder / 'logs', environment=path) as group:
    statuses = group.wait(_LIMIT_SECONDS)
    printed = [group.text(i) for i in range(2)]
  agreed = all(
    'Step 2 could not be saved (process 1: File too large)' in text
    and 'stored: [2, 3]' in text
    for text in printed
  )
  held = statuses == [0, 0] and agreed
  return {
    'tries': 1,
    'held': int(held),
    'failures': [] if held else [text[-1000:] for text in printed],
  }
