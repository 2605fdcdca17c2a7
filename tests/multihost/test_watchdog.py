"""Who is to blame, from what was heard when; no processes, no waiting."""

import dataclasses
import json
import logging
import subprocess
import sys
import threading
import time

import pytest

from gfl_jax.multihost import failure_detector, hosts, watchdog
from gfl_jax.multihost.exit_reporter import ExitReporter
from gfl_jax.multihost.failure_detector import FailureDetector, Heartbeat


class Peers:
  """What the coordinator knows, told to process 0 of `count` each second."""

  def __init__(self, count=3):
    self.detector = FailureDetector(0, count, now=0.0)
    self.heartbeats = {process: Heartbeat() for process in range(count)}
    self.stopped = set()
    self.now, self.begun, self.allowed = 0.0, 0, 0.0

  def all_begin(self, *, patient=False, but=()):
    """All but some begin the next piece of work."""
    self.begun += 1
    for process in self.heartbeats.keys() - set(but):
      self.change(process, begun=self.begun, patient=patient)

  def change(self, process, **fields):
    self.heartbeats[process] = dataclasses.replace(self.heartbeats[process], **fields)

  def pass_seconds(self, seconds):
    """Returns the first diagnosis and when it came, after so many seconds at most."""
    for second in range(1, seconds + 1):
      self.now += 1.0
      for process in self.heartbeats.keys() - self.stopped:
        self.change(process, count=self.heartbeats[process].count + 1)
      self.detector.hear(self.heartbeats, self.begun, self.now)
      if diagnosis := self.detector.diagnosis(self.now, allowed=self.allowed):
        return diagnosis, second
    return None, seconds


def test_a_silent_peer_is_named_in_whatever_all_do():
  peers = Peers()
  peers.all_begin(patient=True)
  assert peers.pass_seconds(600) == (None, 600)  # they compile: it takes what it takes
  peers.stopped.add(2)
  diagnosis, seconds = peers.pass_seconds(60)
  assert (
    diagnosis.failed_peers == (2,)
    and 'no sign of life for 15 s from process 2:' in diagnosis.text
  )
  assert seconds == failure_detector.SILENT_SECONDS


@pytest.mark.parametrize('ahead', [0, 1])
def test_a_peer_may_take_longer_for_its_first_sign_of_life(ahead):
  peers = Peers()
  late = peers.heartbeats.pop(
    2
  )  # its devices are not ready: the coordinator has no word
  for _ in range(ahead):
    peers.all_begin()
  assert peers.pass_seconds(59) == (None, 59)
  assert peers.detector.diagnosis(peers.now, failed=True) is None
  peers.heartbeats[2] = late
  assert peers.pass_seconds(600) == (None, 600)  # it compiles
  peers.stopped.add(2)  # from now on it is as any other
  diagnosis, seconds = peers.pass_seconds(60)
  assert diagnosis.failed_peers == (2,) and seconds == failure_detector.SILENT_SECONDS


def test_a_peer_that_never_gives_a_sign_is_named():
  peers = Peers()
  del peers.heartbeats[2]
  diagnosis, seconds = peers.pass_seconds(100)
  assert (
    diagnosis.failed_peers == (2,) and seconds == failure_detector.FIRST_SIGN_SECONDS
  )


def test_after_a_failed_collective_silence_shows_sooner():
  peers = Peers()
  peers.pass_seconds(1)
  peers.stopped.add(1)
  peers.pass_seconds(6)
  assert peers.detector.diagnosis(peers.now) is None
  assert peers.detector.diagnosis(peers.now, failed=True).failed_peers == (1,)


def test_a_peer_that_lives_but_does_not_go_on_is_stuck():
  peers = Peers(4)
  peers.all_begin()
  peers.all_begin(but=[1, 3])
  diagnosis, seconds = peers.pass_seconds(60)
  assert diagnosis.failed_peers == (1, 3)
  assert 'no progress for 20 s from processes 1, 3: alive' in diagnosis.text
  assert seconds == failure_detector.STUCK_SECONDS + 1  # heard of a second later


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
  diagnosis, seconds = peers.pass_seconds(3600)
  assert (
    diagnosis.failed_peers == (2,)
    and 'for 30 min from process 2: alive' in diagnosis.text
  )
  assert seconds == failure_detector.PATIENT_SECONDS


def test_whoever_is_done_with_compiling_may_get_stuck_as_ever():
  peers = Peers()
  peers.all_begin(patient=True)
  peers.all_begin(but=[2])
  assert peers.pass_seconds(600) == (None, 600)
  peers.change(2, patient=False, begun=1)
  diagnosis, seconds = peers.pass_seconds(60)
  assert diagnosis.failed_peers == (2,) and seconds == failure_detector.STUCK_SECONDS


@pytest.mark.parametrize('allowed', [failure_detector.PATIENT_SECONDS, 7200.0])
@pytest.mark.parametrize('patient', [True, False])
def test_whoever_does_not_come_to_a_barrier_is_stuck_after_what_is_allowed(
  allowed, patient
):
  peers = Peers()
  peers.all_begin(patient=patient)  # process 0, for one, writes the report in it
  peers.allowed = allowed
  peers.all_begin(patient=True, but=[2])
  assert peers.detector.behind(peers.begun) == [1, 2]  # as far as is known yet
  diagnosis, seconds = peers.pass_seconds(9000)
  assert peers.detector.behind(peers.begun) == [2]
  assert diagnosis.failed_peers == (2,) and diagnosis.retryable
  assert f'for {allowed / 60:.0f} min from process 2: alive' in diagnosis.text
  # One that was patient before is heard of as behind a second later.
  assert seconds in (allowed, allowed + 1)


def test_whoever_is_killed_is_found_in_a_barrier_as_ever():
  peers = Peers()
  peers.allowed = hosts.PREPARE_SECONDS
  peers.all_begin(patient=True, but=[2])
  peers.pass_seconds(1)
  peers.stopped.add(2)
  diagnosis, seconds = peers.pass_seconds(60)
  assert diagnosis.failed_peers == (2,) and seconds == failure_detector.SILENT_SECONDS


def test_a_peer_that_ended_is_named_with_its_error_once_all_had_time_for_their_own():
  peers = Peers()
  peers.change(1, ended='error: image 7 cannot be read')
  peers.stopped.add(1)
  diagnosis, seconds = peers.pass_seconds(60)
  assert diagnosis.text == 'process 1 has ended: error: image 7 cannot be read'
  assert seconds == failure_detector.GRACE_SECONDS + 1
  assert peers.detector.running() == {2}
  assert not diagnosis.retryable
  peers.change(1, retryable=True)
  assert peers.pass_seconds(1)[0].retryable


class Store:
  """What a Watchdog wants of the coordinator."""

  def __init__(self):
    self.texts = {}

  def key_value_set(self, key, text, allow_overwrite):
    assert allow_overwrite
    self.texts[key] = text

  def key_value_dir_get(self, folder):
    return [item for item in self.texts.items() if item[0].startswith(folder)]

  def heartbeats(self, process):
    return Heartbeat(*json.loads(self.texts[f'gfl_jax/watch/{process}']))


def test_peers_are_told_the_whole_error_on_one_line():
  text = 'error: another config. They differ in:\n  seed: 1, 2\n  epochs: 3, 4'
  store = Store()
  listening = watchdog.Watchdog(store, 1, 2, ExitReporter('nothing'))
  listening.ends(text, retryable=True)
  limit = time.monotonic() + 60
  while '1' not in ''.join(store.texts) or not store.heartbeats(1).ended:
    assert time.monotonic() < limit
    time.sleep(0.05)
  listening.close()
  wanted = 'error: another config. They differ in: seed: 1, 2; epochs: 3, 4'
  assert (store.heartbeats(1).ended, store.heartbeats(1).retryable) == (wanted, True)


def test_a_long_error_is_cut_off():
  lines = watchdog.on_one_line('field: 1, 2\n' * 1000)
  assert len(lines) == watchdog.MAX_TEXT
  assert lines.startswith('field: 1, 2; field') and lines.endswith(' ...')
  assert watchdog.on_one_line('x' * watchdog.MAX_TEXT) == 'x' * watchdog.MAX_TEXT


def test_last_words_are_shown_though_tensorflow_is_starting():
  code = (
    'import os\n'
    'from gfl_jax.data import console\n'
    'from gfl_jax.multihost.watchdog import Watchdog\n'
    'from gfl_jax.multihost.exit_reporter import ExitReporter\n'
    'from tests.multihost.test_watchdog import Store\n'
    'watchdog = Watchdog(Store(), 1, 2, ExitReporter("nothing"))\n'
    'with console.suppress_import_noise():\n'
    '  os.write(2, b"no GPU")\n'
    '  watchdog.leave("error: a\\n  b", 3, retryable=False, advice="(try c)")'
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
    ('exit_reporter.dismiss(); os._exit(3)', ''),
  ],
)
def test_a_witness_speaks_for_who_cannot(end, said):
  code = (
    'import os, sys\n'
    'from gfl_jax.multihost.exit_reporter import ExitReporter\n'
    'exit_reporter = ExitReporter("the first")\n'
    'exit_reporter.expect(\'the second "line" of $HOME\')\n' + end
  )
  done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
  assert done.returncode in (-9, -6, 3) and done.stderr == said


def test_a_pause_of_this_process_is_no_silence_of_the_others():
  detector = FailureDetector(1, 3, now=0.0)
  detector.hear({0: Heartbeat(count=1), 2: Heartbeat(count=1)}, 0, 1.0)
  detector.resume(100.0)
  assert detector.diagnosis(100.0) is None and detector.diagnosis(114.9) is None
  for second in range(101, 115):
    detector.hear({0: Heartbeat(count=second), 2: Heartbeat(count=1)}, 0, second)
    assert detector.diagnosis(second) is None
  detector.hear({0: Heartbeat(count=115), 2: Heartbeat(count=1)}, 0, 115.0)
  assert detector.diagnosis(115.0).failed_peers == (2,)


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
  monkeypatch.setattr(hosts, '_watchdog', waiting)
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
  detector = FailureDetector(1, 2, now=0.0)
  detector.hear({0: Heartbeat(count=1)}, 0, 3.0)
  assert detector.diagnosis(17.9) is None
  diagnosis = detector.diagnosis(18.0)
  assert (
    diagnosis.failed_peers == (0,)
    and 'from the coordinator, process 0' in diagnosis.text
  )


@pytest.mark.parametrize(
  'seconds', [failure_detector.SILENT_SECONDS, failure_detector.STUCK_SECONDS]
)
def test_every_verdict_comes_well_within_half_a_minute(seconds):
  # Two rounds of heartbeats, the farewell and the last wait of the coordinator on top.
  assert (
    seconds + 2 * failure_detector.BEAT_SECONDS + 2 * failure_detector.BEAT_SECONDS < 27
  )
  assert seconds < hosts.HEARTBEAT_SECONDS  # jax's own end says less
