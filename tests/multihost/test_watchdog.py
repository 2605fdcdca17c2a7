"""Which process failed, from the times of heartbeats; no processes, no waiting."""

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
  """The heartbeats that process 0 of `count` receives each second."""

  def __init__(self, count=3):
    self.detector = FailureDetector(0, count, now=0.0)
    self.heartbeats = {process: Heartbeat() for process in range(count)}
    self.stopped = set()
    self.now, self.started, self.allowed = 0.0, 0, 0.0

  def all_start(self, *, long=False, but=()):
    """All but some start the next work item."""
    self.started += 1
    for process in self.heartbeats.keys() - set(but):
      self.change(process, started=self.started, long=long)

  def change(self, process, **fields):
    self.heartbeats[process] = dataclasses.replace(self.heartbeats[process], **fields)

  def pass_seconds(self, seconds):
    """Returns the first diagnosis and when it came, after so many seconds at most."""
    for second in range(1, seconds + 1):
      self.now += 1.0
      for process in self.heartbeats.keys() - self.stopped:
        self.change(process, count=self.heartbeats[process].count + 1)
      self.detector.receive(self.heartbeats, self.started, self.now)
      if diagnosis := self.detector.diagnose(self.now, allowed=self.allowed):
        return diagnosis, second
    return None, seconds


def test_a_silent_peer_is_named_in_whatever_all_do():
  peers = Peers()
  peers.all_start(long=True)
  assert peers.pass_seconds(600) == (None, 600)  # they compile
  peers.stopped.add(2)
  diagnosis, seconds = peers.pass_seconds(60)
  assert diagnosis.failed_peers == (2,)
  assert '15 s from process 2:' in diagnosis.text
  assert seconds == failure_detector.SILENT_SECONDS


@pytest.mark.parametrize('ahead', [0, 1])
def test_a_peer_may_take_longer_for_its_first_heartbeat(ahead):
  peers = Peers()
  late = peers.heartbeats.pop(2)  # its devices are not ready
  for _ in range(ahead):
    peers.all_start()
  assert peers.pass_seconds(59) == (None, 59)
  assert peers.detector.diagnose(peers.now, failed=True) is None
  peers.heartbeats[2] = late
  assert peers.pass_seconds(600) == (None, 600)  # it compiles
  peers.stopped.add(2)  # from now on it is as any other
  diagnosis, seconds = peers.pass_seconds(60)
  assert diagnosis.failed_peers == (2,) and seconds == failure_detector.SILENT_SECONDS


def test_a_peer_without_any_heartbeat_is_named():
  peers = Peers()
  del peers.heartbeats[2]
  diagnosis, seconds = peers.pass_seconds(100)
  assert diagnosis.failed_peers == (2,)
  assert seconds == failure_detector.FIRST_HEARTBEAT_SECONDS


def test_after_a_failed_collective_a_silent_peer_is_found_sooner():
  peers = Peers()
  peers.pass_seconds(1)
  peers.stopped.add(1)
  peers.pass_seconds(6)
  assert peers.detector.diagnose(peers.now) is None
  assert peers.detector.diagnose(peers.now, failed=True).failed_peers == (1,)


def test_a_running_peer_without_progress_is_stuck():
  peers = Peers(4)
  peers.all_start()
  peers.all_start(but=[1, 3])
  diagnosis, seconds = peers.pass_seconds(60)
  assert diagnosis.failed_peers == (1, 3)
  assert '20 s from processes 1, 3:' in diagnosis.text
  assert seconds == failure_detector.STUCK_SECONDS + 1  # received a second later


def test_a_peer_in_step_is_not_stuck_however_long_the_step_takes():
  peers = Peers()
  peers.all_start()
  assert peers.pass_seconds(3600) == (None, 3600)
  # Nor is one that has fallen behind a moment ago.
  peers.all_start(but=[1])
  assert peers.pass_seconds(19) == (None, 19)
  peers.change(1, started=peers.started)
  assert peers.pass_seconds(3600) == (None, 3600)


def test_a_peer_that_compiles_or_saves_is_not_stuck_for_half_an_hour():
  peers = Peers()
  peers.all_start(long=True)
  assert peers.pass_seconds(3600) == (None, 3600)
  peers.all_start(but=[2])  # process 2 is not done with it
  assert peers.pass_seconds(1799) == (None, 1799)
  peers.change(2, started=peers.started)  # just in time: its half hour starts again
  assert peers.pass_seconds(3600) == (None, 3600)
  peers.all_start(but=[2])
  diagnosis, seconds = peers.pass_seconds(3600)
  assert diagnosis.failed_peers == (2,)
  assert '30 min from process 2:' in diagnosis.text
  assert seconds == failure_detector.LONG_STUCK_SECONDS


def test_a_peer_that_has_compiled_is_stuck_after_the_usual_time():
  peers = Peers()
  peers.all_start(long=True)
  peers.all_start(but=[2])
  assert peers.pass_seconds(600) == (None, 600)
  peers.change(2, long=False, started=1)
  diagnosis, seconds = peers.pass_seconds(60)
  assert diagnosis.failed_peers == (2,) and seconds == failure_detector.STUCK_SECONDS


@pytest.mark.parametrize('allowed', [failure_detector.LONG_STUCK_SECONDS, 7200.0])
@pytest.mark.parametrize('long', [True, False])
def test_a_peer_that_misses_a_barrier_is_stuck_after_the_allowed_time(allowed, long):
  peers = Peers()
  peers.all_start(long=long)  # process 0 writes the report in it
  peers.allowed = allowed
  peers.all_start(long=True, but=[2])
  assert peers.detector.behind(peers.started) == [1, 2]  # nothing received yet
  diagnosis, seconds = peers.pass_seconds(9000)
  assert peers.detector.behind(peers.started) == [2]
  assert diagnosis.failed_peers == (2,) and diagnosis.retryable
  assert f'for {allowed / 60:.0f} min from process 2:' in diagnosis.text
  # A peer in long work before is received as behind a second later.
  assert seconds in (allowed, allowed + 1)


def test_a_killed_peer_is_found_in_a_barrier_after_the_usual_time():
  peers = Peers()
  peers.allowed = hosts.PREPARE_SECONDS
  peers.all_start(long=True, but=[2])
  peers.pass_seconds(1)
  peers.stopped.add(2)
  diagnosis, seconds = peers.pass_seconds(60)
  assert diagnosis.failed_peers == (2,) and seconds == failure_detector.SILENT_SECONDS


def test_a_peer_that_ended_is_named_with_its_error_after_the_grace_time():
  peers = Peers()
  peers.change(1, error='error: image 7 cannot be read')
  peers.stopped.add(1)
  diagnosis, seconds = peers.pass_seconds(60)
  assert diagnosis.text == 'process 1 has ended: error: image 7 cannot be read'
  assert seconds == failure_detector.GRACE_SECONDS + 1
  assert peers.detector.running() == {2}
  assert not diagnosis.retryable
  peers.change(1, retryable=True)
  assert peers.pass_seconds(1)[0].retryable


class Storage:
  """What a Watchdog needs of the coordinator."""

  def __init__(self):
    self.texts = {}

  def key_value_set(self, key, text, allow_overwrite):
    assert allow_overwrite
    self.texts[key] = text

  def key_value_dir_get(self, folder):
    return [item for item in self.texts.items() if item[0].startswith(folder)]

  def heartbeats(self, process):
    return Heartbeat(*json.loads(self.texts[f'gfl_jax/watchdog/{process}']))


def test_peers_receive_the_whole_error_on_one_line():
  text = 'error: another config. They differ in:\n  seed: 1, 2\n  epochs: 3, 4'
  storage = Storage()
  dog = watchdog.Watchdog(storage, 1, 2, ExitReporter('nothing'))
  dog.report_error(text, retryable=True)
  limit = time.monotonic() + 60
  while '1' not in ''.join(storage.texts) or not storage.heartbeats(1).error:
    assert time.monotonic() < limit
    time.sleep(0.05)
  dog.close()
  wanted = 'error: another config. They differ in: seed: 1, 2; epochs: 3, 4'
  last = storage.heartbeats(1)
  assert (last.error, last.retryable) == (wanted, True)


def test_a_long_error_is_cut_off():
  lines = watchdog.on_one_line('field: 1, 2\n' * 1000)
  assert len(lines) == watchdog.MAX_TEXT
  assert lines.startswith('field: 1, 2; field') and lines.endswith(' ...')
  assert watchdog.on_one_line('x' * watchdog.MAX_TEXT) == 'x' * watchdog.MAX_TEXT


def test_the_last_line_is_shown_while_tensorflow_starts():
  code = (
    'import os\n'
    'from gfl_jax.data import terminal\n'
    'from gfl_jax.multihost.watchdog import Watchdog\n'
    'from gfl_jax.multihost.exit_reporter import ExitReporter\n'
    'from tests.multihost.test_watchdog import Storage\n'
    'watchdog = Watchdog(Storage(), 1, 2, ExitReporter("nothing"))\n'
    'with terminal.hold_back_stderr():\n'
    '  os.write(2, b"no GPU")\n'
    '  watchdog.leave("error: a\\n  b", retryable=False, status=3, advice="(try c)")'
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
    ('exit_reporter.cancel(); os._exit(3)', ''),
  ],
)
def test_the_exit_reporter_prints_for_a_process_that_cannot(end, said):
  code = (
    'import os, sys\n'
    'from gfl_jax.multihost.exit_reporter import ExitReporter\n'
    'exit_reporter = ExitReporter("the first")\n'
    'exit_reporter.set_text(\'the second "line" of $HOME\')\n' + end
  )
  done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
  assert done.returncode in (-9, -6, 3) and done.stderr == said


def test_a_pause_of_this_process_is_not_a_failure_of_the_others():
  detector = FailureDetector(1, 3, now=0.0)
  detector.receive({0: Heartbeat(count=1), 2: Heartbeat(count=1)}, 0, 1.0)
  detector.restart(100.0)
  assert detector.diagnose(100.0) is None and detector.diagnose(114.9) is None
  for second in range(101, 115):
    detector.receive({0: Heartbeat(count=second), 2: Heartbeat(count=1)}, 0, second)
    assert detector.diagnose(second) is None
  detector.receive({0: Heartbeat(count=115), 2: Heartbeat(count=1)}, 0, 115.0)
  assert detector.diagnose(115.0).failed_peers == (2,)


class Waiting:
  """A watchdog and a client whose process 2 is late; keeps the calls."""

  def __init__(self):
    self.asked, self.values, self.named = [], {}, threading.Event()

  def start_work(self, *, long, allowed):
    self.asked.append((long, allowed))

  def behind(self):
    return [2]

  def wait_at_barrier(self, name, milliseconds):
    # The watchdog, whose message says more, is to end it.
    assert milliseconds > 1000 * self.asked[-1][1]
    self.asked.append(name)
    assert self.named.wait(60)

  def key_value_set(self, name, text):
    self.values[name] = text

  def blocking_key_value_get(self, name, milliseconds):
    assert milliseconds > 1000 * self.asked[-1][1]
    return '[7]'


def log_and_set(log, waiting):
  def both(*arguments):
    log(*arguments)
    waiting.named.set()

  return both


@pytest.mark.parametrize('process', [0, 1])
def test_barriers_are_work_items(monkeypatch, caplog, process):
  waiting = Waiting()
  monkeypatch.setattr(hosts, 'watchdog', waiting)
  monkeypatch.setattr(hosts.private_apis, 'distributed_client', lambda: waiting)
  monkeypatch.setattr(hosts, '_NAME_LATE_AFTER_SECONDS', 0.05)
  monkeypatch.setattr(hosts.jax, 'process_index', lambda: process)
  monkeypatch.setattr(hosts._LOG, 'warning', log_and_set(hosts._LOG.warning, waiting))

  def read():
    assert not waiting.asked  # so that a process 0 that is stuck here is behind
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
  detector.receive({0: Heartbeat(count=1)}, 0, 3.0)
  assert detector.diagnose(17.9) is None
  diagnosis = detector.diagnose(18.0)
  assert diagnosis.failed_peers == (0,)
  assert 'process 0' in diagnosis.text


@pytest.mark.parametrize(
  'seconds', [failure_detector.SILENT_SECONDS, failure_detector.STUCK_SECONDS]
)
def test_every_diagnosis_comes_well_within_half_a_minute(seconds):
  # Two rounds of heartbeats, the last exchange and the wait of the coordinator on top.
  assert seconds + 4 * failure_detector.HEARTBEAT_SECONDS < 27
  assert seconds < hosts.JAX_HEARTBEAT_SECONDS  # jax's own message says less
