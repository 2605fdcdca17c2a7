"""Finds the process of a run that failed, from the heartbeats of all processes.

watchdog.py sends and receives the heartbeats.
"""

import dataclasses
from collections.abc import Collection, Mapping

HEARTBEAT_SECONDS = 1.0
# Heartbeats stop for so long only if a process was killed or stopped: their thread runs
# even while the process compiles. Calls that hold the interpreter take a few seconds.
SILENT_SECONDS = 15.0
SILENT_SECONDS_AFTER_FAILURE = 5.0  # after a failed collective: something is wrong
FIRST_HEARTBEAT_SECONDS = 60.0  # the hosts of a pod are ready at different times
STUCK_SECONDS = 20.0
LONG_STUCK_SECONDS = 1800.0  # for work that may take long, such as compiling
GRACE_SECONDS = 5.0  # for every process to report an error that all of them get


@dataclasses.dataclass(frozen=True)
class Heartbeat:
  """The state of a process, as it reports it.

  Attributes:
    count: of heartbeats; it grows as long as the process runs.
    started: number of work items started; all processes do the same items in the same
      order and wait for each other in them.
    long: the current item may take long: compiling, evaluating or saving.
    error: why the process ends; empty while it runs.
    retryable: the error may not come back when all processes are started again.
  """

  count: int = 0
  started: int = 0
  long: bool = True
  error: str = ''
  retryable: bool = False


@dataclasses.dataclass(frozen=True)
class Diagnosis:
  """Why this process must end.

  Attributes:
    text: the reason.
    failed_peers: the processes that failed.
    retryable: starting all processes again may help.
  """

  text: str
  failed_peers: tuple[int, ...]
  retryable: bool = True


class FailureDetector:
  """Decides from the times of heartbeats which peer failed. Times are in seconds."""

  def __init__(self, process: int, count: int, now: float):
    """Starts as `process` of `count`."""
    self._peers = {peer: Heartbeat() for peer in range(count) if peer != process}
    self._last_heartbeat = dict.fromkeys(self._peers, now)
    self._behind_since = dict.fromkeys(self._peers, now)
    self._behind_in_short_work_since = dict.fromkeys(self._peers, now)
    self._error_at: dict[int, float] = {}
    self._received_at = now

  def receive(
    self, heartbeats: Mapping[int, Heartbeat], started: int, now: float
  ) -> None:
    """Takes the newest heartbeats that the coordinator has.

    Args:
      heartbeats: by process.
      started: number of work items that this process has started.
      now: time.
    """
    self._received_at = now
    for peer in self._peers.keys() & heartbeats.keys():
      old, new = self._peers[peer], heartbeats[peer]
      self._peers[peer] = new
      if new.count != old.count:
        self._last_heartbeat[peer] = now
      if not old.count or new.started != old.started or new.started >= started:
        self._behind_since[peer] = self._behind_in_short_work_since[peer] = now
      if new.long:
        self._behind_in_short_work_since[peer] = now
      if new.error:
        self._error_at.setdefault(peer, now)

  def restart(self, now: float) -> None:
    """Resets the clocks after a pause of this process, in which it received nothing."""
    self._received_at = now
    for times in (
      self._last_heartbeat,
      self._behind_since,
      self._behind_in_short_work_since,
    ):
      times.update(dict.fromkeys(times, now))

  def any_silent(self, seconds: float) -> bool:
    """Whether a peer sent no heartbeat for so long, with or without an error before."""
    return any(self._is_silent(peer, seconds) for peer in self._peers)

  def _is_silent(self, peer: int, seconds: float) -> bool:
    if not self._peers[peer].count:
      seconds = max(seconds, FIRST_HEARTBEAT_SECONDS)
    return self._received_at - self._last_heartbeat[peer] >= seconds

  def _silent(self, seconds: float) -> list[int]:
    """Peers that sent no heartbeat for so long and no error before."""
    peers = self._peers.keys() - self._error_at.keys()
    return sorted(peer for peer in peers if self._is_silent(peer, seconds))

  def running(self) -> set[int]:
    """Peers that sent a heartbeat lately and no error."""
    silent = self._silent(3 * HEARTBEAT_SECONDS)
    return self._peers.keys() - {*self._error_at, *silent}

  def behind(self, started: int) -> list[int]:
    """Peers without an error that have started fewer work items."""
    return [
      peer
      for peer, heartbeat in self._peers.items()
      if heartbeat.started < started and not heartbeat.error
    ]

  def diagnose(
    self, now: float, *, failed: bool = False, allowed: float = 0.0
  ) -> Diagnosis | None:
    """The failure, if there is one.

    Args:
      now: time.
      failed: a collective has failed on this process.
      allowed: seconds that this process waits at least for a peer with heartbeats.
    """
    silent_seconds = SILENT_SECONDS_AFTER_FAILURE if failed else SILENT_SECONDS
    if now - self._received_at >= silent_seconds:
      return Diagnosis(
        f'no answer for {now - self._received_at:.0f} s from the coordinator, process'
        ' 0: it was killed or stopped, or its machine cannot be reached',
        (0,),
      )
    if silent := self._silent(silent_seconds):
      return Diagnosis(
        f'no heartbeat for {silent_seconds:.0f} s from {names(silent)}: killed or'
        ' stopped, or the machine cannot be reached',
        tuple(silent),
      )
    if allowed <= STUCK_SECONDS and (
      stuck := self._stuck(self._behind_in_short_work_since, STUCK_SECONDS)
    ):
      return Diagnosis(
        f'no progress for {STUCK_SECONDS:.0f} s from {names(stuck)}: running, but'
        ' stuck, perhaps waiting for data',
        tuple(stuck),
      )
    seconds = max(allowed, LONG_STUCK_SECONDS)
    if stuck := self._stuck(self._behind_since, seconds):
      return Diagnosis(
        f'no progress for {seconds / 60:.0f} min from {names(stuck)}: running, but'
        ' stuck while opening files, compiling, restoring, evaluating or saving',
        tuple(stuck),
      )
    ended = sorted(self._error_at, key=lambda peer: self._error_at[peer])
    if ended and self._received_at - self._error_at[ended[0]] >= GRACE_SECONDS:
      first = self._peers[ended[0]]
      text = f'process {ended[0]} has ended: {first.error.removesuffix(".")}'
      return Diagnosis(text, tuple(ended), first.retryable)
    return None

  def _stuck(self, since: Mapping[int, float], seconds: float) -> list[int]:
    """Peers with heartbeats, without an error, that made no progress for so long."""
    return [
      peer
      for peer, heartbeat in self._peers.items()
      if heartbeat.count
      and not heartbeat.error
      and self._received_at - since[peer] >= seconds
    ]


def names(processes: Collection[int]) -> str:
  """As in 'processes 1, 3'."""
  numbers = ', '.join(map(str, processes))
  return f'process{"es" if len(processes) > 1 else ""} {numbers}'
