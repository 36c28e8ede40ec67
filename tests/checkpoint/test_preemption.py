"""SIGTERM and SIGINT: noted once, then as ever."""

import os
import signal
import threading

import pytest

from modules.training.checkpoint.preemption import stop_requested


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_is_noted_and_the_second_acts_as_before(number):
    received = []
    before = signal.signal(number, lambda *_: received.append(number))
    try:
        mine = signal.getsignal(number)
        with stop_requested() as stop:
            assert not stop.is_set()
            os.kill(os.getpid(), number)
            assert stop.is_set()
            assert stop.signal is number
            assert received == []
            os.kill(os.getpid(), number)
            assert received == [number]
        assert signal.getsignal(number) is mine
    finally:
        signal.signal(number, before)


def test_handlers_are_restored_when_no_signal_came():
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with stop_requested() as stop:
        assert signal.getsignal(signal.SIGTERM) is not before[0]
    assert not stop.is_set()
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


def test_only_the_main_thread_may_ask():
    errors = []

    def ask():
        try:
            with stop_requested():
                pass
        except ValueError as error:
            errors.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    assert "main thread" in str(errors[0])
