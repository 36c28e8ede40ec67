"""Memory that the process has freed goes back to the system.

glibc keeps it: per thread what large requests took, and the old version after each reload
(TF Serving #1664, #2142), so that a server seems to grow for ever.
"""

from __future__ import annotations

import ctypes
import os
import pathlib
import resource
import threading

_LIBC = ctypes.CDLL(None)
_STATM = pathlib.Path("/proc/self/statm")
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_KEPT = 1 << 30
_GROWTH = 32 << 20
_SECONDS = 5.0


def configure_heap() -> None:
    """Lets threads share the heap, and keeps large tensors' memory from one request to the next.

    glibc's default is a part of the heap for each of many threads, and fresh pages from the system
    for every large tensor. To be called before threads are started.
    """
    if hasattr(_LIBC, "mallopt"):
        _LIBC.mallopt(_M_ARENA_MAX, 2 * (os.cpu_count() or 1))
        if _LIBC.mallopt(_M_MMAP_THRESHOLD, _KEPT):  # glibc before 2.35 refuses so much
            _LIBC.mallopt(_M_TRIM_THRESHOLD, _KEPT)


def give_back() -> None:
    """Returns to the system whatever pages of the heap are free."""
    if hasattr(_LIBC, "malloc_trim"):
        _LIBC.malloc_trim(0)


def watch() -> None:
    """Starts a thread that gives memory back each time that the process has grown by 32 MB."""
    if _STATM.exists():
        threading.Thread(target=_watch, name="memory", daemon=True).start()


def _watch() -> None:
    least = _resident()
    pause = threading.Event()
    while not pause.wait(_SECONDS):
        least = min(least, _resident())
        if _resident() > least + _GROWTH:
            give_back()
            least = _resident()


def _resident() -> int:
    """Bytes."""
    return int(_STATM.read_text().split()[1]) * resource.getpagesize()
