"""SIGTERM and SIGINT, waited for: neither lost nor deadly, whatever threads there are."""

from __future__ import annotations

import signal
import socket


def stop_signals() -> socket.socket:
    """A socket that has something to read once SIGTERM or SIGINT came. Main thread only.

    Not a handler that wakes the main thread: Python runs handlers between bytecodes, so one for a
    signal that comes just before the thread blocks would run when the next signal comes. What
    wakes it is written where the signal arrives, in whatever thread that is. Nor a blocked signal
    and `sigwait`: threads of libraries (NumPy's begin as it is imported) have it unblocked, and
    until the main thread waits it kills the process through them.
    """
    stopping, arrived = socket.socketpair()
    arrived.setblocking(False)
    signal.set_wakeup_fd(arrived.detach(), warn_on_full_buffer=False)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    return stopping
