"""Ends a process whose peers are gone or stuck, with a line that names them.

A collective waits for its peers for ever, and jax ends a process only where a peer's
heartbeat stops: one that lives and hangs would hang all. So each process tells the
others, through the coordinator and from a thread of its own, how much work it has
begun, and ends when one is silent or falls behind.
"""

import dataclasses
import json
import logging
import math
import os
import sys
import threading
import time
from collections.abc import Collection, Mapping
from typing import Any, NoReturn

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
ORDER_SECONDS = 60.0  # a process with an error may finish the checkpoint begun before
GO_ON = 'Start all processes again: the run goes on from its last checkpoint.'
_FOLDER = 'gfl_jax/watch/'
_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class News:
  """What a process tells of itself.

  Attributes:
    beat: grows as long as the process runs.
    begun: pieces of work that it has begun; all processes do the same pieces in the
      same order, and wait for each other in them.
    patient: the piece may take long: it is compiled, evaluated or saved.
    ended: why it ends; empty while it runs.
  """

  beat: int = 0
  begun: int = 0
  patient: bool = True
  ended: str = ''


@dataclasses.dataclass(frozen=True)
class Verdict:
  """Why this process must end, and the peers that are to blame."""

  text: str
  accused: tuple[int, ...]


class Judge:
  """Tells from what was heard when, all in seconds of one clock, who is to blame."""

  def __init__(self, process: int, count: int, now: float):
    """Begins to listen as `process` of `count`."""
    self._peers = {peer: News() for peer in range(count) if peer != process}
    self._beat_at = dict.fromkeys(self._peers, now)
    self._behind_since = dict.fromkeys(self._peers, now)
    self._impatient_since = dict.fromkeys(self._peers, now)
    self._ended_at: dict[int, float] = {}
    self._heard_at = now

  def hear(self, news: Mapping[int, News], begun: int, now: float) -> None:
    """Takes the newest that the coordinator has from each process.

    Args:
      news: of each process.
      begun: pieces of work that this process has begun.
      now: seconds.
    """
    self._heard_at = now
    for peer in self._peers.keys() & news.keys():
      old, new = self._peers[peer], news[peer]
      self._peers[peer] = new
      if new.beat != old.beat:
        self._beat_at[peer] = now
      if not old.beat or new.begun != old.begun or new.begun >= begun:
        self._behind_since[peer] = self._impatient_since[peer] = now
      if new.patient:
        self._impatient_since[peer] = now
      if new.ended:
        self._ended_at.setdefault(peer, now)

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
    if not self._peers[peer].beat:
      seconds = max(seconds, FIRST_SIGN_SECONDS)
    return self._heard_at - self._beat_at[peer] >= seconds

  def running(self) -> set[int]:
    """Peers that neither ended nor are silent."""
    return self._peers.keys() - {*self._ended_at, *self.silent(3 * BEAT_SECONDS)}

  def verdict(self, now: float, *, failed: bool = False) -> Verdict | None:
    """Who is to blame at `now`, if anyone; `failed`: a collective has failed here."""
    silent_seconds = SILENT_SECONDS_AFTER_FAILURE if failed else SILENT_SECONDS
    if now - self._heard_at >= silent_seconds:
      return Verdict(
        f'no answer for {now - self._heard_at:.0f} s from the coordinator, process 0:'
        ' killed or stopped, or the machine cannot be reached',
        (0,),
      )
    if silent := self.silent(silent_seconds):
      return Verdict(
        f'no sign of life for {silent_seconds:.0f} s from {_names(silent)}: killed or'
        ' stopped, or the machine cannot be reached',
        tuple(silent),
      )
    if stuck := self._stuck(self._impatient_since, STUCK_SECONDS):
      return Verdict(
        f'no progress for {STUCK_SECONDS:.0f} s from {_names(stuck)}: alive, but stuck,'
        ' perhaps waiting for data',
        tuple(stuck),
      )
    if stuck := self._stuck(self._behind_since, PATIENT_SECONDS):
      return Verdict(
        f'no progress for {PATIENT_SECONDS / 60:.0f} min from {_names(stuck)}: alive,'
        ' but stuck where it may take long: compiling, restoring, evaluating or saving',
        tuple(stuck),
      )
    ended = sorted(self._ended_at, key=lambda peer: self._ended_at[peer])
    if ended and self._heard_at - self._ended_at[ended[0]] >= GRACE_SECONDS:
      first = self._peers[ended[0]]
      return Verdict(f'process {ended[0]} has ended: {first.ended}', tuple(ended))
    return None

  def _stuck(self, since: Mapping[int, float], seconds: float) -> list[int]:
    """Peers that run, were heard of, and do not go on since so many seconds."""
    return [
      peer
      for peer, news in self._peers.items()
      if news.beat and not news.ended and self._heard_at - since[peer] >= seconds
    ]


def _names(processes: list[int]) -> str:
  numbers = ', '.join(map(str, processes))
  return f'process{"es" if len(processes) > 1 else ""} {numbers}'


class Watch:
  """The threads of a process that tell, listen and end it."""

  def __init__(self, client: Any, process: int, count: int):
    """Starts to tell and to listen.

    Args:
      client: of jax's distributed service: a store of keys and values.
      process: number of this one.
      count: of all.
    """
    self._client, self._process = client, process
    self._judge = Judge(process, count, time.monotonic())
    self._news = News()
    self._lock = threading.Lock()
    self._leaving = threading.Lock()
    self._failed = False
    self._ended_at = math.inf
    self._closed = threading.Event()
    for run in (self._tell_and_listen, self._decide):
      threading.Thread(target=run, daemon=True, name=f'watch{run.__name__}').start()

  def begin(self, *, patient: bool) -> None:
    """A piece of work begins that all processes do."""
    with self._lock:
      self._news = dataclasses.replace(
        self._news, begun=self._news.begun + 1, patient=patient
      )

  def close(self) -> None:
    """Ends the threads; all processes are known to be done."""
    self._closed.set()

  def failed(self) -> None:
    """A collective of this process has failed: who is to blame shows sooner now."""
    self._failed = True

  def ends(self, text: str) -> None:
    """This process ends with an error, after what it still has to put in order."""
    with self._lock:
      self._news = dataclasses.replace(self._news, ended=text)
      self._ended_at = time.monotonic()

  def leave(self, text: str, code: int, accused: Collection[int] = ()) -> NoReturn:
    """Ends this process now; the others are told why.

    jax's own way out, `jax.distributed.shutdown`, waits for minutes for all processes.

    Args:
      text: why, a line or a few.
      code: exit status.
      accused: peers that are not waited for.
    """
    with self._leaving:  # never released: the first to leave says why
      print(f'\nprocess {self._process}: {text}', file=sys.stderr, flush=True)
      self.ends(text.splitlines()[0])
      # Not in this thread: a coordinator that is stopped never answers.
      farewell = threading.Thread(target=self._exchange, daemon=True)
      farewell.start()
      farewell.join(2 * BEAT_SECONDS)
      if self._process == 0:
        self._let_others_leave(accused)
      sys.stdout.flush()
      os._exit(code)

  def _let_others_leave(self, accused: Collection[int]) -> None:
    # When the coordinator ends, jax aborts all others before they can say why.
    limit = time.monotonic() + GRACE_SECONDS + 3 * BEAT_SECONDS
    while time.monotonic() < limit:
      if self._judge.running() <= set(accused):
        return
      time.sleep(BEAT_SECONDS / 4)

  def _tell_and_listen(self) -> None:
    while not self._closed.is_set():
      try:
        self._exchange()
      except Exception as error:  # the coordinator may be back; if not, see Judge
        _LOG.debug('no answer from the coordinator: %s', error)
      self._closed.wait(BEAT_SECONDS)

  def _exchange(self) -> None:
    with self._lock:
      self._news = dataclasses.replace(self._news, beat=self._news.beat + 1)
      mine = json.dumps(dataclasses.astuple(self._news))
    self._client.key_value_set(f'{_FOLDER}{self._process}', mine, allow_overwrite=True)
    stored = self._client.key_value_dir_get(_FOLDER)
    news = {int(key.rsplit('/')[-1]): News(*json.loads(text)) for key, text in stored}
    with self._lock:
      self._judge.hear(news, self._news.begun, time.monotonic())

  def _decide(self) -> None:
    while not self._closed.wait(BEAT_SECONDS / 2):
      now = time.monotonic()
      with self._lock:
        mine = self._news
        late = now - self._ended_at > ORDER_SECONDS
        gone = self._judge.gone(SILENT_SECONDS_AFTER_FAILURE)
        verdict = self._judge.verdict(now, failed=self._failed)
      if mine.ended and (late or gone):
        self.leave(f'{mine.ended}\n{GO_ON}', 1)
      if verdict and not mine.ended:
        self.leave(f'error: {verdict.text}.\n{GO_ON}', 1, verdict.accused)
