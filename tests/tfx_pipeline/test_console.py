"""One line a node, one message an error; everything else in the log."""

from __future__ import annotations

import io
import logging
import pathlib
import subprocess
import sys

import pytest
import rich.console

from tests.repo.source_tree import ROOT
from tfx_pipeline import quiet
from tfx_pipeline.progress import LOGGER, NodeLines


@pytest.fixture
def written():
    """Root and absl log INFO, as under `quiet.redirected`; yields the console's text."""
    levels = {name: logging.getLogger(name).level for name in (None, "absl")}
    for name in levels:
        logging.getLogger(name).setLevel(logging.INFO)
    yield io.StringIO()
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


def _words(text: io.StringIO) -> list[list[str]]:
    return [line.split() for line in text.getvalue().splitlines()]


def test_a_line_for_each_node_with_its_state(written):
    console = rich.console.Console(file=written, width=100)
    absl = logging.getLogger("absl")
    with pytest.raises(RuntimeError), NodeLines(console):
        absl.info("Component %s is running.", "Transform")
        absl.info("A cached execution %d is used.", 7)
        absl.info("Component %s is finished.", "Transform")
        absl.info("Component %s is running.", "Finetune")
        absl.info("something TFX says")
        absl.info("Component %s is finished.", "Finetune")
        absl.info("Component %s is running.", "Pusher")
        raise RuntimeError("disk full")
    lines = _words(written)
    assert [line[:2] for line in lines] == [
        ["Transform", "cached"],
        ["Finetune", "done"],
        ["Pusher", "FAILED"],
    ]
    assert all(line[3] == "s" and float(line[2]) >= 0 for line in lines)


def test_a_node_that_was_interrupted_did_not_fail(written):
    console = rich.console.Console(file=written, width=100)
    with pytest.raises(RuntimeError), NodeLines(console) as lines:
        lines.start("Transform")
        raise RuntimeError("KeyboardInterrupt [while running 'Transform']")
    assert [line[:2] for line in _words(written)] == [["Transform", "stopped"]]


def test_tfx_still_says_what_the_lines_listen_to():
    orchestration = pathlib.Path(rich.console.__file__).parents[1] / "tfx/orchestration"
    runner = (orchestration / "local/local_dag_runner.py").read_text()
    launcher = (orchestration / "portable/launcher.py").read_text()
    assert "logging.info('Component %s is running.', node_id)" in runner
    assert "logging.info('Component %s is finished.', node_id)" in runner
    assert "logging.info('A cached execution %d is used.'" in launcher


def test_progress_without_a_terminal_is_rare(written, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("tfx_pipeline.progress.time.monotonic", lambda: now[0])
    progress = logging.getLogger(LOGGER)
    with NodeLines(rich.console.Console(file=written, width=100)) as lines:
        progress.info("before any node")
        lines.start("Finetune")
        for second in range(100):
            now[0] = float(second)
            progress.info("step %d/100", second, extra={"fraction": second / 100})
    assert _words(written) == [
        ["Finetune:", "step", "21/100"],
        ["Finetune:", "step", "42/100"],
        ["Finetune:", "step", "63/100"],
        ["Finetune:", "step", "84/100"],
        ["Finetune", "done", "99.0", "s"],
    ]


def test_beam_and_keras_stacks_are_taken_out_of_a_message():
    beam = RuntimeError(
        "Traceback (most recent call last):\n"
        '  File "x.py", line 1, in process\n    read()\n'
        "data.events.SourceError: log.csv.gz: ends too early\n  after 3 rows"
        " [while running 'Read/ParDo']\n"
    )
    assert quiet.reason(beam) == "log.csv.gz: ends too early\n  after 3 rows"
    keras = ValueError(
        "in user code:\n\n    File 'a.py', line 2, in f  *\n\n"
        "    ValueError: shapes (3,) and (4,) differ\n\n\n    Call arguments: x=[...]\n"
    )
    assert quiet.reason(keras) == "shapes (3,) and (4,) differ"
    assert quiet.reason(KeyError()) == "KeyError"
    assert quiet.reason(ValueError("two\nlines")) == "two\nlines"


_NOISY = """
import os, pathlib, subprocess, sys
from tfx_pipeline import quiet
with quiet.redirected(pathlib.Path(sys.argv[1])) as console:
    print("python noise")
    os.write(2, b"C++ noise")
    subprocess.run(["echo", "child noise"])
    console.print("one line")
    if "wrapped" in sys.argv:
        raise RuntimeError("KeyboardInterrupt [while running 'Transform']")
    if len(sys.argv) > 2:
        raise ValueError("no such table")
print("restored")
"""


def _noisy(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", _NOISY, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_noise_goes_to_the_log(tmp_path):
    done = _noisy(str(tmp_path / "run.log"))
    assert (done.stdout, done.stderr) == ("one line\nrestored\n", "")
    log = (tmp_path / "run.log").read_text()
    assert all(f"{source} noise" in log for source in ("python", "C++", "child"))


def test_a_crash_is_one_message_and_its_stack_is_in_the_log(tmp_path):
    log = tmp_path / "run.log"
    crashed = _noisy(str(log), "crash")
    assert crashed.returncode == 1
    assert crashed.stderr == f"error: no such table\nThe whole story is in {log}\n"
    assert "Traceback" in log.read_text() and "ValueError: no such table" in log.read_text()


def test_an_interrupt_inside_beam_is_still_an_interrupt(tmp_path):
    stopped = _noisy(str(tmp_path / "run.log"), "wrapped")
    assert stopped.stderr == "Stopped. The same command goes on from the last finished node.\n"
