"""Who is to blame, from what was heard when; no processes, no waiting."""

import dataclasses
import json
import logging
import subprocess
import sys
import threading
import time

import pytest

from gfl_jax.training import hosts, judge, watch
from gfl_jax.training.judge import Judge, News
from gfl_jax.training.witness import Witness


class Peers:
  """What the coordinator knows, told to process 0 of `count` each second."""

  def __init__(self, count=3):
    self.judge = Judge(0, count, now=0.0)
    self.news = {process: News() for process in range(count)}
    self.stopped = set()
    self.now, self.begun, self.allowed = 0.0, 0, 0.0

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
      if verdict := self.judge.verdict(self.now, allowed=self.allowed):
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
  assert seconds == judge.SILENT_SECONDS


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
  assert verdict.accused == (2,) and seconds == judge.SILENT_SECONDS


def test_a_peer_that_never_gives_a_sign_is_named():
  peers = Peers()
  del peers.news[2]
  verdict, seconds = peers.pass_seconds(100)
  assert verdict.accused == (2,) and seconds == judge.FIRST_SIGN_SECONDS


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
  assert seconds == judge.STUCK_SECONDS + 1  # heard of a second later


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
  assert seconds == judge.PATIENT_SECONDS


def test_whoever_is_done_with_compiling_may_get_stuck_as_ever():
  peers = Peers()
  peers.all_begin(patient=True)
  peers.all_begin(but=[2])
  assert peers.pass_seconds(600) == (None, 600)
  peers.change(2, patient=False, begun=1)
  verdict, seconds = peers.pass_seconds(60)
  assert verdict.accused == (2,) and seconds == judge.STUCK_SECONDS


@pytest.mark.parametrize('allowed', [judge.PATIENT_SECONDS, 7200.0])
@pytest.mark.parametrize('patient', [True, False])
def test_whoever_does_not_come_to_a_barrier_is_stuck_after_what_is_allowed(
  allowed, patient
):
  peers = Peers()
  peers.all_begin(patient=patient)  # process 0, for one, writes the report in it
  peers.allowed = allowed
  peers.all_begin(patient=True, but=[2])
  assert peers.judge.behind(peers.begun) == [1, 2]  # as far as is known yet
  verdict, seconds = peers.pass_seconds(9000)
  assert peers.judge.behind(peers.begun) == [2]
  assert verdict.accused == (2,) and verdict.again
  assert f'for {allowed / 60:.0f} min from process 2: alive' in verdict.text
  # One that was patient before is heard of as behind a second later.
  assert seconds in (allowed, allowed + 1)


def test_whoever_is_killed_is_found_in_a_barrier_as_ever():
  peers = Peers()
  peers.allowed = hosts.PREPARE_SECONDS
  peers.all_begin(patient=True, but=[2])
  peers.pass_seconds(1)
  peers.stopped.add(2)
  verdict, seconds = peers.pass_seconds(60)
  assert verdict.accused == (2,) and seconds == judge.SILENT_SECONDS


def test_a_peer_that_ended_is_named_with_its_error_once_all_had_time_for_their_own():
  peers = Peers()
  peers.change(1, ended='error: image 7 cannot be read')
  peers.stopped.add(1)
  verdict, seconds = peers.pass_seconds(60)
  assert verdict.text == 'process 1 has ended: error: image 7 cannot be read'
  assert seconds == judge.GRACE_SECONDS + 1
  assert peers.judge.running() == {2}
  assert not verdict.again
  peers.change(1, again=True)
  assert peers.pass_seconds(1)[0].again


class Store:
  """What a Watch wants of the coordinator."""

  def __init__(self):
    self.texts = {}

  def key_value_set(self, key, text, allow_overwrite):
    assert allow_overwrite
    self.texts[key] = text

  def key_value_dir_get(self, folder):
    return [item for item in self.texts.items() if item[0].startswith(folder)]

  def news(self, process):
    return News(*json.loads(self.texts[f'gfl_jax/watch/{process}']))


def test_peers_are_told_the_whole_error_on_one_line():
  text = 'error: another config. They differ in:\n  seed: 1, 2\n  epochs: 3, 4'
  store = Store()
  listening = watch.Watch(store, 1, 2, Witness('nothing'))
  listening.ends(text, again=True)
  limit = time.monotonic() + 60
  while '1' not in ''.join(store.texts) or not store.news(1).ended:
    assert time.monotonic() < limit
    time.sleep(0.05)
  listening.close()
  wanted = 'error: another config. They differ in: seed: 1, 2; epochs: 3, 4'
  assert (store.news(1).ended, store.news(1).again) == (wanted, True)


def test_a_long_error_is_cut_off():
  lines = watch.on_one_line('field: 1, 2\n' * 1000)
  assert len(lines) == watch.MAX_TEXT
  assert lines.startswith('field: 1, 2; field') and lines.endswith(' ...')
  assert watch.on_one_line('x' * watch.MAX_TEXT) == 'x' * watch.MAX_TEXT


def test_last_words_are_shown_though_tensorflow_is_starting():
  code = (
    'import os\n'
    'from gfl_jax.data import quiet\n'
    'from gfl_jax.training.watch import Watch\n'
    'from gfl_jax.training.witness import Witness\n'
    'from tests.training.test_watch import Store\n'
    'watch = Watch(Store(), 1, 2, Witness("nothing"))\n'
    'with quiet.starting():\n'
    '  os.write(2, b"no GPU")\n'
    '  watch.leave("error: a\\n  b", 3, again=False, advice="(try c)")'
  )
  done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
  assert (done.returncode, done.stdout) == (3, '')
  assert done.stderr == '\nprocess 1: error: a\n  b\n(try c)\n'


@pytest.mark.parametrize(
  'end, said',
  [
    ('os.kill(os.getpid(), 9)', 'the second "line" of $HOME\n'),
    ('os.abort()', 'the second "line" of $HOME\n'),
    ('sys.exit(3)', ''),
    ('witness.dismiss(); os._exit(3)', ''),
  ],
)
def test_a_witness_speaks_for_who_cannot(end, said):
  code = (
    'import os, sys\n'
    'from gfl_jax.training.witness import Witness\n'
    'witness = Witness("the first")\n'
    'witness.expect(\'the second "line" of $HOME\')\n' + end
  )
  done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
  assert done.returncode in (-9, -6, 3) and done.stderr == said


def test_a_pause_of_this_process_is_no_silence_of_the_others():
  judge = Judge(1, 3, now=0.0)
  judge.hear({0: News(beat=1), 2: News(beat=1)}, 0, 1.0)
  judge.resume(100.0)
  assert judge.verdict(100.0) is None and judge.verdict(114.9) is None
  for second in range(101, 115):
    judge.hear({0: News(beat=second), 2: News(beat=1)}, 0, second)
    assert judge.verdict(second) is None
  judge.hear({0: News(beat=115), 2: News(beat=1)}, 0, 115.0)
  assert judge.verdict(115.0).accused == (2,)


class Waiting:
  """A watch and a client whose process 2 is late; keeps what is asked of them."""

  def __init__(self):
    self.asked, self.values, self.told = [], {}, threading.Event()

  def begin(self, *, patient, allowed):
    self.asked.append((patient, allowed))

  def behind(self):
    return [2]

  def wait_at_barrier(self, name, milliseconds):
    # The watch, which says more, is to end it.
    assert milliseconds > 1000 * self.asked[-1][1]
    self.asked.append(name)
    assert self.told.wait(60)

  def key_value_set(self, name, text):
    self.values[name] = text

  def blocking_key_value_get(self, name, milliseconds):
    assert milliseconds > 1000 * self.asked[-1][1]
    return '[7]'


def log_and_tell(log, waiting):
  def both(*arguments):
    log(*arguments)
    waiting.told.set()

  return both


@pytest.mark.parametrize('process', [0, 1])
def test_barriers_are_work_that_peers_see(monkeypatch, caplog, process):
  waiting = Waiting()
  monkeypatch.setattr(hosts, '_watch', waiting)
  monkeypatch.setattr(hosts, '_client', lambda: waiting)
  monkeypatch.setattr(hosts, '_TELL_SECONDS', 0.05)
  monkeypatch.setattr(hosts.jax, 'process_index', lambda: process)
  monkeypatch.setattr(hosts._LOG, 'warning', log_and_tell(hosts._LOG.warning, waiting))

  def read():
    assert not waiting.asked  # so that a process 0 that hangs here is behind
    return [7]

  with caplog.at_level(logging.WARNING):
    assert hosts.from_first(read) == [7]
    assert len(waiting.values) == (process == 0)
    hosts.wait_for_all()
    assert set(caplog.messages) == {'Waiting for process 2, at most 30 min.'}
    half_hour, day = (True, 1800.0), (True, 24 * 3600.0)
    assert [x for x in waiting.asked if x in (half_hour, day)] == [half_hour] * 2
    waiting.asked.clear()
    with hosts.first_alone():
      assert len(waiting.asked) == (0 if process == 0 else 2)
  assert waiting.asked[::2] == [day] * 2


def test_a_coordinator_that_does_not_answer_is_named():
  judge = Judge(1, 2, now=0.0)
  judge.hear({0: News(beat=1)}, 0, 3.0)
  assert judge.verdict(17.9) is None
  verdict = judge.verdict(18.0)
  assert verdict.accused == (0,) and 'from the coordinator, process 0' in verdict.text


@pytest.mark.parametrize('seconds', [judge.SILENT_SECONDS, judge.STUCK_SECONDS])
def test_every_verdict_comes_well_within_half_a_minute(seconds):
  # Two rounds of news, the farewell and the last wait of the coordinator on top.
  assert seconds + 2 * judge.BEAT_SECONDS + 2 * judge.BEAT_SECONDS < 27
  assert seconds < hosts.HEARTBEAT_SECONDS  # jax's own end says less
