"""SIGTERM (a preempted machine, `kubectl delete`) and SIGINT (Ctrl-C) as a request to stop."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopRequest:
    """Whether the process was asked to stop; `signal` says by what.

    Not a threading.Event: setting one in a handler deadlocks if it interrupts a wait for it.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None

    def is_set(self) -> bool:
        return self.signal is not None


@contextlib.contextmanager
def stop_requested() -> Iterator[StopRequest]:
    """Within it the first SIGTERM or SIGINT is only noted; a second one acts as ever.

        with stop_requested() as stop:
            while not stop.is_set(): ...

    Raises:
      ValueError: not in the main thread, the only one that Python lets handle signals.
    """
    request = StopRequest()
    before = {number: signal.getsignal(number) for number in _SIGNALS}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def note(number: int, frame: object) -> None:
        request.signal = signal.Signals(number)
        restore()

    for number in _SIGNALS:
        signal.signal(number, note)
    try:
        yield request
    finally:
        restore()
