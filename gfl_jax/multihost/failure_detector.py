"""Finds the process of a run that failed, from the heartbeats of all processes.

watchdog.py sends and receives the heartbeats.
"""

import dataclasses
from collections.abc import Callable, Collection, Mapping

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


@dataclasses.dataclass
class _Peer:
  """Another process. It is behind while it has started fewer work items than this."""

  last_heartbeat: float
  behind_since: float
  behind_in_short_work_since: float
  error_at: float = 0.0
  state: Heartbeat = Heartbeat()


class FailureDetector:
  """Decides from the times of heartbeats which peer failed. Times are in seconds."""

  def __init__(self, process: int, count: int, now: float):
    """Starts as `process` of `count`."""
    self._peers = {n: _Peer(now, now, now) for n in range(count) if n != process}
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
    for number in self._peers.keys() & heartbeats.keys():
      peer, new = self._peers[number], heartbeats[number]
      old, peer.state = peer.state, new
      if new.count != old.count:
        peer.last_heartbeat = now
      if not old.count or new.started != old.started or new.started >= started:
        peer.behind_since = peer.behind_in_short_work_since = now
      if new.long:
        peer.behind_in_short_work_since = now
      if new.error and not old.error:
        peer.error_at = now

  def restart(self, now: float) -> None:
    """Resets the clocks after a pause of this process, in which it received nothing."""
    self._received_at = now
    for peer in self._peers.values():
      peer.last_heartbeat = peer.behind_since = peer.behind_in_short_work_since = now

  def any_silent(self, seconds: float) -> bool:
    """Whether a peer sent no heartbeat for so long, with or without an error before."""
    return any(self._is_silent(peer, seconds) for peer in self._peers.values())

  def running(self) -> set[int]:
    """Peers that sent a heartbeat lately and no error."""
    return set(self._find(lambda x: not self._is_silent(x, 3 * HEARTBEAT_SECONDS)))

  def behind(self, started: int) -> list[int]:
    """Peers without an error that have started fewer work items."""
    return self._find(lambda peer: peer.state.started < started)

  def _find(self, condition: Callable[[_Peer], object]) -> list[int]:
    """Peers that sent no error and meet a condition."""
    peers = self._peers.items()
    return [n for n, peer in peers if not peer.state.error and condition(peer)]

  def _is_silent(self, peer: _Peer, seconds: float) -> bool:
    if not peer.state.count:
      seconds = max(seconds, FIRST_HEARTBEAT_SECONDS)
    return self._received_at - peer.last_heartbeat >= seconds

  def diagnose(
    self, now: float, *, failed: bool = False, allowed: float = 0.0
  ) -> Diagnosis | None:
    """The failure, if there is one.

    Args:
      now: time.
      failed: a collective has failed on this process.
      allowed: seconds that this process waits at least for a peer with heartbeats.
    """
    received, peers = self._received_at, self._peers
    seconds = SILENT_SECONDS_AFTER_FAILURE if failed else SILENT_SECONDS
    if now - received >= seconds:
      return Diagnosis(
        f'no answer for {now - received:.0f} s from the coordinator, process 0: it was'
        ' killed or stopped, or its machine cannot be reached',
        (0,),
      )
    if silent := self._find(lambda peer: self._is_silent(peer, seconds)):
      return Diagnosis(
        f'no heartbeat for {seconds:.0f} s from {names(silent)}: killed or stopped, or'
        ' the machine cannot be reached',
        tuple(silent),
      )
    stuck = self._find(
      lambda x: (
        x.state.count and received - x.behind_in_short_work_since >= STUCK_SECONDS
      )
    )
    if stuck and allowed <= STUCK_SECONDS:
      return Diagnosis(
        f'no progress for {STUCK_SECONDS:.0f} s from {names(stuck)}: running, but'
        ' stuck, perhaps waiting for data',
        tuple(stuck),
      )
    seconds = max(allowed, LONG_STUCK_SECONDS)
    stuck = self._find(lambda x: x.state.count and received - x.behind_since >= seconds)
    if stuck:
      return Diagnosis(
        f'no progress for {seconds / 60:.0f} min from {names(stuck)}: running, but'
        ' stuck while opening files, compiling, restoring, evaluating or saving',
        tuple(stuck),
      )
    ended = [number for number, peer in peers.items() if peer.state.error]
    ended.sort(key=lambda number: peers[number].error_at)
    if ended and received - peers[ended[0]].error_at >= GRACE_SECONDS:
      first = peers[ended[0]].state
      text = f'process {ended[0]} has ended: {first.error.removesuffix(".")}'
      return Diagnosis(text, tuple(ended), first.retryable)
    return None


def names(processes: Collection[int]) -> str:
  """As in 'processes 1, 3'."""
  numbers = ', '.join(map(str, processes))
  return f'process{"es" if len(processes) > 1 else ""} {numbers}'
