"""A run that is told to stop learns of it, and stops when it is ready."""

import os
import signal

import jax
import pytest
from jax.experimental import multihost_utils

from train.machines.signals import StopSignals


def test_run_goes_on_until_told_to_stop():
    with StopSignals() as signals:
        assert not signals.stop_after_step()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_is_noted(number):
    with StopSignals() as signals:
        os.kill(os.getpid(), number)
        assert signals.stop_after_step()


def test_steps_of_all_runs_of_a_program_are_counted_on(monkeypatch):
    counted = []
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(
        multihost_utils, "reached_preemption_sync_point", lambda n: counted.append(n)
    )
    signals = StopSignals()
    for _ in range(3):
        signals.stop_after_step()
    assert counted == [1, 2, 3]


@pytest.fixture
def interrupts():
    """Has Ctrl-C raise, also in a process whose shell started it in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_second_interrupt_interrupts(interrupts):
    with StopSignals(), pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)


def test_signals_are_left_as_they_were():
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = [signal.getsignal(number) for number in numbers]
    with StopSignals():
        os.kill(os.getpid(), signal.SIGINT)
    assert [signal.getsignal(number) for number in numbers] == before
