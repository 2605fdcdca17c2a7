"""Who is to blame, from what was heard when; no processes, no waiting."""

import dataclasses

import pytest

from gfl_jax.training import hosts, watch
from gfl_jax.training.watch import Judge, News


class Peers:
  """What the coordinator knows, told to process 0 of `count` each second."""

  def __init__(self, count=3):
    self.judge = Judge(0, count, now=0.0)
    self.news = {process: News() for process in range(count)}
    self.stopped = set()
    self.now, self.begun = 0.0, 0

  def all_begin(self, *, patient=False, but=()):
    """All but some begin the next piece of work."""
    self.begun += 1
    for process in self.news.keys() - set(but):
      self.change(process, begun=self.begun, patient=patient)

  def change(self, process, **fields):
    self.news[process] = dataclasses.replace(self.news[process], **fields)

  def pass_seconds(self, seconds):
    """Returns the first verdict and when it came, after so many seconds at most."""
    for second in range(1, seconds + 1):
      self.now += 1.0
      for process in self.news.keys() - self.stopped:
        self.change(process, beat=self.news[process].beat + 1)
      self.judge.hear(self.news, self.begun, self.now)
      if verdict := self.judge.verdict(self.now):
        return verdict, second
    return None, seconds


def test_a_silent_peer_is_named_in_whatever_all_do():
  peers = Peers()
  peers.all_begin(patient=True)
  assert peers.pass_seconds(600) == (None, 600)  # they compile: it takes what it takes
  peers.stopped.add(2)
  verdict, seconds = peers.pass_seconds(60)
  assert (
    verdict.accused == (2,)
    and 'no sign of life for 15 s from process 2:' in verdict.text
  )
  assert seconds == watch.SILENT_SECONDS


@pytest.mark.parametrize('ahead', [0, 1])
def test_a_peer_may_take_longer_for_its_first_sign_of_life(ahead):
  peers = Peers()
  late = peers.news.pop(2)  # its devices are not ready: the coordinator has no word
  for _ in range(ahead):
    peers.all_begin()
  assert peers.pass_seconds(59) == (None, 59)
  assert peers.judge.verdict(peers.now, failed=True) is None
  peers.news[2] = late
  assert peers.pass_seconds(600) == (None, 600)  # it compiles
  peers.stopped.add(2)  # from now on it is as any other
  verdict, seconds = peers.pass_seconds(60)
  assert verdict.accused == (2,) and seconds == watch.SILENT_SECONDS


def test_a_peer_that_never_gives_a_sign_is_named():
  peers = Peers()
  del peers.news[2]
  verdict, seconds = peers.pass_seconds(100)
  assert verdict.accused == (2,) and seconds == watch.FIRST_SIGN_SECONDS


def test_after_a_failed_collective_silence_shows_sooner():
  peers = Peers()
  peers.pass_seconds(1)
  peers.stopped.add(1)
  peers.pass_seconds(6)
  assert peers.judge.verdict(peers.now) is None
  assert peers.judge.verdict(peers.now, failed=True).accused == (1,)


def test_a_peer_that_lives_but_does_not_go_on_is_stuck():
  peers = Peers(4)
  peers.all_begin()
  peers.all_begin(but=[1, 3])
  verdict, seconds = peers.pass_seconds(60)
  assert verdict.accused == (1, 3)
  assert 'no progress for 20 s from processes 1, 3: alive' in verdict.text
  assert seconds == watch.STUCK_SECONDS + 1  # heard of a second later


def test_whoever_is_in_step_is_not_stuck_however_long_the_step_takes():
  peers = Peers()
  peers.all_begin()
  assert peers.pass_seconds(3600) == (None, 3600)
  # Nor is one that all have left behind a moment ago.
  peers.all_begin(but=[1])
  assert peers.pass_seconds(19) == (None, 19)
  peers.change(1, begun=peers.begun)
  assert peers.pass_seconds(3600) == (None, 3600)


def test_whoever_compiles_or_saves_is_not_stuck_for_half_an_hour():
  peers = Peers()
  peers.all_begin(patient=True)
  assert peers.pass_seconds(3600) == (None, 3600)
  peers.all_begin(but=[2])  # done with it; 2 is not
  assert peers.pass_seconds(1799) == (None, 1799)
  peers.change(2, begun=peers.begun)  # just in time: its half hours begin anew
  assert peers.pass_seconds(3600) == (None, 3600)
  peers.all_begin(but=[2])
  verdict, seconds = peers.pass_seconds(3600)
  assert verdict.accused == (2,) and 'for 30 min from process 2: alive' in verdict.text
  assert seconds == watch.PATIENT_SECONDS


def test_whoever_is_done_with_compiling_may_get_stuck_as_ever():
  peers = Peers()
  peers.all_begin(patient=True)
  peers.all_begin(but=[2])
  assert peers.pass_seconds(600) == (None, 600)
  peers.change(2, patient=False, begun=1)
  verdict, seconds = peers.pass_seconds(60)
  assert verdict.accused == (2,) and seconds == watch.STUCK_SECONDS


def test_a_peer_that_ended_is_named_with_its_error_once_all_had_time_for_their_own():
  peers = Peers()
  peers.change(1, ended='error: image 7 cannot be read')
  peers.stopped.add(1)
  verdict, seconds = peers.pass_seconds(60)
  assert verdict.text == 'process 1 has ended: error: image 7 cannot be read'
  assert seconds == watch.GRACE_SECONDS + 1
  assert peers.judge.running() == {2}


def test_a_coordinator_that_does_not_answer_is_named():
  judge = Judge(1, 2, now=0.0)
  judge.hear({0: News(beat=1)}, 0, 3.0)
  assert judge.verdict(17.9) is None
  verdict = judge.verdict(18.0)
  assert verdict.accused == (0,) and 'from the coordinator, process 0' in verdict.text


@pytest.mark.parametrize('seconds', [watch.SILENT_SECONDS, watch.STUCK_SECONDS])
def test_every_verdict_comes_well_within_half_a_minute(seconds):
  # Two rounds of news, the farewell and the last wait of the coordinator on top.
  assert seconds + 2 * watch.BEAT_SECONDS + 2 * watch.BEAT_SECONDS < 27
  assert seconds < hosts.HEARTBEAT_SECONDS  # jax's own end says less
