"""Which process of a run is to blame, from what is heard of each; see watch.py."""

import dataclasses
from collections.abc import Collection, Mapping

BEAT_SECONDS = 1.0
# A process is silent that long only if it was killed or stopped: its thread tells even
# while the others compile. Long calls that hold the interpreter take a few seconds.
SILENT_SECONDS = 15.0
# With a collective that failed already there is no doubt that something is wrong.
SILENT_SECONDS_AFTER_FAILURE = 5.0
FIRST_SIGN_SECONDS = 60.0  # the devices of a pod's hosts are ready at different times
STUCK_SECONDS = 20.0
PATIENT_SECONDS = 1800.0  # in which the longest program is compiled, or a set evaluated
GRACE_SECONDS = 5.0  # an error that comes to all ends each with its own line


@dataclasses.dataclass(frozen=True)
class Heartbeat:
  """What a process tells of itself.

  Attributes:
    count: grows as long as the process runs.
    begun: pieces of work that it has begun; all processes do the same pieces in the
      same order, and wait for each other in them.
    patient: the piece may take long: it is compiled, evaluated or saved.
    ended: why it ends; empty while it runs.
    retryable: what ended it may not happen when all processes are started again.
  """

  count: int = 0
  begun: int = 0
  patient: bool = True
  ended: str = ''
  retryable: bool = False


@dataclasses.dataclass(frozen=True)
class Diagnosis:
  """Why this process must end, and the peers that are to blame.

  Attributes:
    text: why.
    failed_peers: the peers.
    retryable: starting all processes again may help.
  """

  text: str
  failed_peers: tuple[int, ...]
  retryable: bool = True


class FailureDetector:
  """Tells from what was heard when, all in seconds of one clock, who is to blame."""

  def __init__(self, process: int, count: int, now: float):
    """Begins to listen as `process` of `count`."""
    self._peers = {peer: Heartbeat() for peer in range(count) if peer != process}
    self._beat_at = dict.fromkeys(self._peers, now)
    self._behind_since = dict.fromkeys(self._peers, now)
    self._impatient_since = dict.fromkeys(self._peers, now)
    self._ended_at: dict[int, float] = {}
    self._heard_at = now

  def hear(self, heartbeats: Mapping[int, Heartbeat], begun: int, now: float) -> None:
    """Takes the newest that the coordinator has from each process.

    Args:
      heartbeats: of each process.
      begun: pieces of work that this process has begun.
      now: seconds.
    """
    self._heard_at = now
    for peer in self._peers.keys() & heartbeats.keys():
      old, new = self._peers[peer], heartbeats[peer]
      self._peers[peer] = new
      if new.count != old.count:
        self._beat_at[peer] = now
      if not old.count or new.begun != old.begun or new.begun >= begun:
        self._behind_since[peer] = self._impatient_since[peer] = now
      if new.patient:
        self._impatient_since[peer] = now
      if new.ended:
        self._ended_at.setdefault(peer, now)

  def resume(self, now: float) -> None:
    """Listens anew after a pause of this process, in which it could hear of nobody."""
    self._heard_at = now
    for since in (self._beat_at, self._behind_since, self._impatient_since):
      since.update(dict.fromkeys(since, now))

  def silent(self, seconds: float) -> list[int]:
    """Peers that run, as far as is known, and told nothing for so long."""
    return [
      peer
      for peer in self._peers
      if peer not in self._ended_at and self._quiet(peer, seconds)
    ]

  def gone(self, seconds: float) -> bool:
    """Whether some peer told nothing for so long, be it that it ended."""
    return any(self._quiet(peer, seconds) for peer in self._peers)

  def _quiet(self, peer: int, seconds: float) -> bool:
    if not self._peers[peer].count:
      seconds = max(seconds, FIRST_SIGN_SECONDS)
    return self._heard_at - self._beat_at[peer] >= seconds

  def running(self) -> set[int]:
    """Peers that neither ended nor are silent."""
    return self._peers.keys() - {*self._ended_at, *self.silent(3 * BEAT_SECONDS)}

  def behind(self, begun: int) -> list[int]:
    """Peers that run and have not begun as many pieces of work."""
    return [
      peer
      for peer, heartbeat in self._peers.items()
      if heartbeat.begun < begun and not heartbeat.ended
    ]

  def diagnosis(
    self, now: float, *, failed: bool = False, allowed: float = 0.0
  ) -> Diagnosis | None:
    """Who is to blame, if anyone.

    Args:
      now: seconds.
      failed: a collective has failed here.
      allowed: seconds that this process waits at least for a peer that lives.
    """
    silent_seconds = SILENT_SECONDS_AFTER_FAILURE if failed else SILENT_SECONDS
    if now - self._heard_at >= silent_seconds:
      return Diagnosis(
        f'no answer for {now - self._heard_at:.0f} s from the coordinator, process 0:'
        ' killed or stopped, or the machine cannot be reached',
        (0,),
      )
    if silent := self.silent(silent_seconds):
      return Diagnosis(
        f'no sign of life for {silent_seconds:.0f} s from {names(silent)}: killed or'
        ' stopped, or the machine cannot be reached',
        tuple(silent),
      )
    if allowed <= STUCK_SECONDS and (
      stuck := self._stuck(self._impatient_since, STUCK_SECONDS)
    ):
      return Diagnosis(
        f'no progress for {STUCK_SECONDS:.0f} s from {names(stuck)}: alive, but stuck,'
        ' perhaps waiting for data',
        tuple(stuck),
      )
    seconds = max(allowed, PATIENT_SECONDS)
    if stuck := self._stuck(self._behind_since, seconds):
      return Diagnosis(
        f'no progress for {seconds / 60:.0f} min from {names(stuck)}: alive, but stuck'
        ' where it may take long: opening files, compiling, restoring, evaluating or'
        ' saving',
        tuple(stuck),
      )
    ended = sorted(self._ended_at, key=lambda peer: self._ended_at[peer])
    if ended and self._heard_at - self._ended_at[ended[0]] >= GRACE_SECONDS:
      first = self._peers[ended[0]]
      text = f'process {ended[0]} has ended: {first.ended.removesuffix(".")}'
      return Diagnosis(text, tuple(ended), first.retryable)
    return None

  def _stuck(self, since: Mapping[int, float], seconds: float) -> list[int]:
    """Peers that run, were heard of, and do not go on since so many seconds."""
    return [
      peer
      for peer, heartbeat in self._peers.items()
      if heartbeat.count
      and not heartbeat.ended
      and self._heard_at - since[peer] >= seconds
    ]


def names(processes: Collection[int]) -> str:
  """As in 'processes 1, 3'."""
  numbers = ', '.join(map(str, processes))
  return f'process{"es" if len(processes) > 1 else ""} {numbers}'
