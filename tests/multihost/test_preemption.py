"""Signals as wishes to stop."""

import os
import signal

import pytest

from gfl_jax.multihost.preemption import Preemption


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_after_the_step(number):
  before = signal.getsignal(number)
  with Preemption() as stop:
    assert stop.requested() is None
    os.kill(os.getpid(), number)
    assert stop.requested() == number
  assert signal.getsignal(number) == before


def test_under_nohup_a_closed_terminal_stops_nothing():
  before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
  try:
    with Preemption() as stop:
      os.kill(os.getpid(), signal.SIGHUP)
      assert stop.requested() is None
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
  finally:
    signal.signal(signal.SIGHUP, before)
