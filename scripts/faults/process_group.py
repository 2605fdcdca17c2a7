"""Several processes of one program on this machine, joined over loopback.

For tests and for scripts/faults/inject.py: each process stands for a host, and its
virtual CPU devices for accelerators.
"""

import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Collection, Mapping, Sequence

POLL_SECONDS = 0.05


class ProcessGroup:
  """The processes; as a context manager it ends those that still run.

  Attributes:
    processes: by number; None if not started.
    seconds: by number: when `wait` found that it had ended, by `time.monotonic`.
  """

  def __init__(
    self,
    command: Sequence[str],
    count: int,
    folder: str | os.PathLike,
    *,
    devices: int = 2,
    environment: Mapping[str, str] | None = None,
    later: Collection[int] = (),
  ):
    """Starts the processes.

    Args:
      command: arguments of Python: a script and its own. With more than one process
        `--coordinator`, `--num_processes` and `--process_id` are added.
      count: of processes.
      folder: made if missing; the output of process I is appended to I.log.
      devices: virtual CPU devices of each process.
      environment: on top of this process's own.
      later: numbers of processes that `start` will start later.
    """
    self._command, self._count = list(command), count
    self._folder = pathlib.Path(folder)
    self._folder.mkdir(parents=True, exist_ok=True)
    self._environment = os.environ | {
      'JAX_PLATFORMS': 'cpu',
      'JAX_NUM_CPU_DEVICES': str(devices),
      'PYTHONUNBUFFERED': '1',
      **(environment or {}),
    }
    self._port = free_port()
    self.processes: list[subprocess.Popen | None] = [None] * count
    self.seconds: list[float | None] = [None] * count
    for number in range(count):
      if number not in later:
        self.start(number)

  def __enter__(self) -> 'ProcessGroup':
    return self

  def __exit__(self, *error) -> None:
    for process in self.processes:
      if process and process.poll() is None:
        process.kill()  # also if it is stopped
        process.wait()

  def start(self, number: int) -> None:
    """Starts one of the processes."""
    joined = [
      f'--coordinator=127.0.0.1:{self._port}',
      f'--num_processes={self._count}',
      f'--process_id={number}',
    ]
    command = [sys.executable, *self._command, *(joined if self._count > 1 else [])]
    with self._log(number).open('ab') as log:
      self.processes[number] = subprocess.Popen(
        command, stdout=log, stderr=subprocess.STDOUT, env=self._environment
      )

  def signal(self, number: int, which: signal.Signals) -> None:
    """Sends one of the processes a signal."""
    process = self.processes[number]
    assert process
    process.send_signal(which)

  def text(self, number: int) -> str:
    """What a process has printed."""
    log = self._log(number)
    return log.read_text(errors='replace') if log.exists() else ''

  def wait_for_text(self, number: int, wanted: str, limit_seconds: float) -> None:
    """Returns when a process has printed `wanted`.

    Raises:
      TimeoutError: it has not, or it has ended before; shows all output.
    """
    limit = time.monotonic() + limit_seconds
    while wanted not in self.text(number):
      process = self.processes[number]
      ended = process is not None and process.poll() is not None
      if time.monotonic() > limit or (ended and wanted not in self.text(number)):
        raise TimeoutError(f'process {number} never said {wanted!r}\n{self.report()}')
      time.sleep(POLL_SECONDS)

  def wait(
    self, limit_seconds: float, numbers: Collection[int] | None = None
  ) -> list[int | None]:
    """Returns the exit statuses when the processes have ended.

    Args:
      limit_seconds: from now.
      numbers: those to wait for; all if not given.

    Raises:
      TimeoutError: some still run; shows all output.
    """
    limit = time.monotonic() + limit_seconds
    waiting = set(range(self._count) if numbers is None else numbers)
    while waiting:
      for number in sorted(waiting):
        process = self.processes[number]
        if process and process.poll() is not None:
          self.seconds[number] = time.monotonic()
          waiting.remove(number)
      if waiting and time.monotonic() > limit:
        raise TimeoutError(
          f'{sorted(waiting)} still run after {limit_seconds} s\n{self.report()}'
        )
      time.sleep(POLL_SECONDS)
    return [process.poll() if process else None for process in self.processes]

  def report(self, lines: int = 40) -> str:
    """The last lines of each process, for a message."""
    parts = []
    for number, process in enumerate(self.processes):
      status = process.poll() if process else 'not started'
      last = '\n'.join(self.text(number).splitlines()[-lines:])
      parts.append(f'--- process {number}, exit status {status}\n{last}')
    return '\n'.join(parts)

  def _log(self, number: int) -> pathlib.Path:
    return self._folder / f'{number}.log'


def free_port() -> int:
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    return free.getsockname()[1]
