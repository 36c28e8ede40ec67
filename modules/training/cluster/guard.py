"""Nothing outlives its supervisor: processes carry its mark, and a guard kills what is left.

Every process a supervisor starts has `MARK` in its environment, and so has every process that
one starts. The guard holds a pipe from the supervisor; however that dies, the pipe ends, and
the guard kills all that carry the mark: grandchildren and new sessions too, which neither
process groups nor PR_SET_PDEATHSIG reach.
"""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
import time

import psutil

MARK = "TRAINING_CLUSTER_MARK"
ROOT = pathlib.Path(__file__).resolve().parents[3]
_SETTLE_SECONDS = 0.1
_PATIENCE_SECONDS = 30.0


def start_guard(mark: str) -> subprocess.Popen[bytes]:
    """Starts the guard of `mark`; closing its `stdin` (or dying) has it kill and leave."""
    unmarked = {name: value for name, value in os.environ.items() if name != MARK}
    return subprocess.Popen(
        [sys.executable, "-m", "modules.training.cluster.guard", mark],
        stdin=subprocess.PIPE,
        cwd=ROOT,
        env=unmarked,  # an outer cluster's guard must not kill this one before its work is done
        start_new_session=True,
    )


def kill_marked(mark: str) -> None:
    """Kills every process that carries `mark` but this one; returns when none is left."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    empty_scans = 0
    while empty_scans < 2 and time.monotonic() < deadline:  # 2: one may be between fork and exec
        left = _marked(mark)
        for process in left:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        empty_scans = 0 if left else empty_scans + 1
        time.sleep(_SETTLE_SECONDS)


def _marked(mark: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark and process.pid != os.getpid():
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):  # gone, a zombie, or another user's
            continue
    return found


if __name__ == "__main__":
    sys.stdin.buffer.read()
    kill_marked(sys.argv[1])
