"""`launch` ends as its chief does, and leaves nothing however it is ended itself."""

from __future__ import annotations

import pathlib
import shlex
import signal
import subprocess
import sys

import psutil

from modules.training.cluster.events import CLUSTER_EVENTS, read_events
from tests.cluster.processes import python, runs, until, until_written
from tests.repo.source_tree import ROOT


def _launch(
    folder: pathlib.Path, chief: list[str], cluster: str = "placement: single"
) -> subprocess.Popen:
    yaml = folder / "cluster.yaml"
    yaml.write_text(cluster)
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "tfx_pipeline", "launch"),
            *(f"--cluster={yaml}", f"--output={folder}", f"--command={shlex.join(chief)}"),
        ],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_it_ends_with_the_chief_and_tells_what_happened(tmp_path):
    launched = _launch(tmp_path, python("print('trained')"))
    out, err = launched.communicate(timeout=60)
    assert (launched.returncode, err) == (0, "")
    lines = out.splitlines()
    assert " chief 0 start (pid " in lines[0]
    assert " chief 0 done (pid " in lines[1]
    assert lines[-1] == f"events: {tmp_path / CLUSTER_EVENTS}"
    assert (tmp_path / "logs/chief-0.log").read_text() == "trained\n"


def test_a_chief_that_keeps_failing_is_one_clear_error(tmp_path):
    chief = python("raise SystemExit('no such table')")
    launched = _launch(tmp_path, chief, "max_restarts: 0")
    _, err = launched.communicate(timeout=60)
    assert launched.returncode == 1
    assert err.startswith("error: chief 0 ended with exit code 1 after 0 restarts")
    assert "no such table" in err
    assert "Traceback" not in err


CHIEF = """
import os, pathlib, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
far = subprocess.Popen(["sleep", "600"], start_new_session=True)
pathlib.Path({pids!r}).write_text(f"{{os.getpid()}} {{far.pid}}\\n")
while True: time.sleep(0.05)
"""


def test_a_signal_lets_the_chief_save_and_leaves_nothing(tmp_path):
    launched = _launch(tmp_path, python(CHIEF.format(pids=str(tmp_path / "pids"))))
    pids = [int(pid) for pid in until_written(tmp_path / "pids").split()]
    launched.send_signal(signal.SIGTERM)
    launched.communicate(timeout=60)
    assert launched.returncode == 75
    assert not any(runs(pid) for pid in pids)
    assert [e["event"] for e in read_events(tmp_path / CLUSTER_EVENTS)] == ["start", "stop", "end"]


def test_killed_it_leaves_nothing(tmp_path):
    launched = _launch(tmp_path, python(CHIEF.format(pids=str(tmp_path / "pids"))))
    pids = [int(pid) for pid in until_written(tmp_path / "pids").split()]
    pids += [child.pid for child in psutil.Process(launched.pid).children(recursive=True)]
    assert len(set(pids)) == 3  # the chief, what it started, and the guard
    launched.kill()
    launched.communicate(timeout=60)
    until(lambda: not any(runs(pid) for pid in pids), "all gone")


def test_what_it_cannot_launch_is_told(tmp_path):
    launched = _launch(tmp_path, [], "placement: mirrored")
    _, err = launched.communicate(timeout=60)
    assert launched.returncode == 2
    assert "mirrored has no servers to keep up; give --command" in err
