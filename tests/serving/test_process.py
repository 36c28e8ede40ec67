"""The server's process: signals, deaths, wrong starts, and what it imports."""

import signal
import subprocess
import sys
import threading
import time

import grpc
import pytest

from serving.client import Client, ServingError
from serving.local import local_server
from tests.serving.process import run_server, wait_until


def test_sigterm_finishes_requests_under_way_and_exits_0(push, tmp_path):
    push(1.0, tmp_path, 1)
    with local_server(tmp_path) as server, Client(server.target) as asking:
        answers = []

        def ask(steps: int) -> None:
            inputs = {"steps": steps}
            answers.append(asking.predict("default", inputs, signature="spin", timeout=60)["total"])

        ask(1)
        call = threading.Thread(target=ask, args=(400_000,))
        call.start()
        time.sleep(0.5)
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.1)
        assert len(answers) == 1  # it is still under way
        assert server.process.wait(60) == 0
        call.join()
        assert answers == [1.0, 400_000.0]
        with pytest.raises(ServingError, match="no model server answers"):
            asking.status("default")


def test_two_signals_at_once_still_stop_it(push, tmp_path):
    push(1.0, tmp_path, 1)
    with local_server(tmp_path) as server:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
            server.process.send_signal(number)
        assert server.process.wait(60) == 0


def test_a_killed_server_is_one_clear_error(push, tmp_path):
    push(1.0, tmp_path, 1)
    with local_server(tmp_path) as server, Client(server.target) as asking:
        asking.status("default")
        server.process.kill()
        server.process.wait()
        with pytest.raises(ServingError) as caught:
            asking.predict("default", {"x": [1.0], "y": [1.0]}, signature="add")
        assert caught.value.code == grpc.StatusCode.UNAVAILABLE


def test_waits_for_a_missing_base_path_with_one_warning(push, tmp_path):
    command_line = [sys.executable, "-m", "serving.server", "--port=0"]
    command_line += [f"--model_base_path={tmp_path}/later", "--file_system_poll_wait_seconds=0.1"]
    with open(tmp_path / "log", "w+") as log:
        process = subprocess.Popen(command_line, stderr=log)
        try:
            wait_until(lambda: "waiting for it" in (tmp_path / "log").read_text())
            time.sleep(0.5)
            (tmp_path / "later").mkdir()
            wait_until(lambda: "waiting for one" in (tmp_path / "log").read_text())
            push(1.0, tmp_path / "later", 1)
            wait_until(lambda: "ready: default" in (tmp_path / "log").read_text())
        finally:
            process.terminate()
        assert process.wait(60) == 0
        text = (tmp_path / "log").read_text()
    assert text.count("waiting for it") == 1 and text.count("waiting for one") == 1


def test_bad_base_paths_are_one_clear_error(tmp_path, exports):
    (tmp_path / "file").touch()
    for path, text in (
        (tmp_path / "file", "is a file"),
        (exports[1.0], "is itself a SavedModel"),
        ("gs://bucket/models", "must be a local directory"),
    ):
        done = run_server(f"--model_base_path={path}")
        assert done.returncode == 1
        assert done.stderr.startswith("error: ") and text in done.stderr
        assert done.stderr.count("\n") == 1
    assert "--model_base_path" in run_server().stderr


@pytest.mark.parametrize("flag", ["--port", "--rest_api_port"])
def test_a_taken_port_is_one_clear_error(tmp_path, server, flag):
    port = server.target.rpartition(":")[2]
    done = run_server(f"--model_base_path={tmp_path}", "--port=0", f"{flag}={port}")
    assert done.returncode == 1
    assert f"error: {flag}={port}: 127.0.0.1:{port} is taken; give another\n" in done.stderr
    assert "add_port.cc" not in done.stderr  # gRPC's own line


def test_local_server_says_why_a_model_doesn_t_load(tmp_path):
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "saved_model.pb").write_bytes(b"not a model")
    with pytest.raises(ServingError, match="version 1 can't be loaded"), local_server(tmp_path):
        pass
    with (
        pytest.raises(ServingError, match="DEADLINE_EXCEEDED"),
        local_server(tmp_path / "none", deadline=1.0),
    ):
        pass


def test_client_imports_no_tensorflow():
    code = (
        "import sys, serving.client.__main__\n"
        "assert not {'tensorflow', 'data', 'modules', 'tfx_pipeline'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_server_imports_no_tensorflow():
    code = (
        "import sys, serving.server.__main__\n"
        "assert not {'tensorflow', 'data', 'modules', 'tfx_pipeline'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
