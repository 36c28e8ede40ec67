"""Real `tf.distribute.Server` processes: up, answering, back after kill -9, gone with parents."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading

import pytest
import tensorflow as tf

from modules.training.cluster.config import parse_cluster
from modules.training.cluster.server import TERMINATED, main, server_arguments
from modules.training.cluster.supervisor import Supervisor
from tests.cluster.processes import python, runs, until
from tests.repo.source_tree import ROOT


def _ask(address: str, device: str, filters: list[str]) -> tuple[float, list[str]]:
    """A sum computed on `device` through the server at `address`, and the devices it sees."""
    config = tf.compat.v1.ConfigProto(operation_timeout_in_ms=60_000, device_filters=filters)
    with tf.Graph().as_default():
        with tf.device(device):
            total = tf.reduce_sum(tf.range(5.0))
        with tf.compat.v1.Session(f"grpc://{address}", config=config) as session:
            return session.run(total), [device.name for device in session.list_devices()]


@pytest.mark.slow
def test_a_cluster_answers_and_comes_back_after_kill_9(tmp_path):
    cluster = parse_cluster({"placement": "parameter_server", "processes": {"worker": 1, "ps": 1}})
    # Without the chief, whom sessions would wait for.
    filters = ["/job:worker", "/job:ps"]
    with Supervisor(cluster, tmp_path, {}) as supervisor:

        def running() -> bool:
            return all(p.state == "running" for p in supervisor.processes())

        until(running, "servers ready", 120)
        worker, ps = supervisor.processes()
        # From worker to ps: the two see each other.
        answer, devices = _ask(worker.address, "/job:ps/task:0", filters)
        assert answer == 10.0
        assert any("/job:ps/" in device for device in devices)
        assert any("/job:worker/" in device for device in devices)
        assert ps.pid is not None
        os.kill(ps.pid, signal.SIGKILL)
        until(lambda: supervisor.processes()[1].restarts == 1 and running(), "ps back", 120)
        assert _ask(worker.address, "/job:ps/task:0", filters)[0] == 10.0
        assert supervisor.processes()[0].pid == worker.pid
    log = (tmp_path / "logs/ps-0.log").read_text().splitlines()
    assert log == [f"ps 0 ready at {ps.address} (grpc://{ps.address})"] * 2


@pytest.mark.slow
def test_an_alone_server_waits_for_nobody_and_its_port_is_its_own(tmp_path):
    cluster = parse_cluster({"placement": "hybrid", "processes": {"ps": 2}})
    sleeping = [sys.executable, "-c", "import time; time.sleep(600)"]
    with Supervisor(cluster, tmp_path, {"ps": sleeping}) as supervisor:
        environment = {
            **os.environ,
            "TF_CONFIG": supervisor.tf_config("ps", 1),
            "TF_GRPC_REUSE_PORT": "1",
        }
        command = [sys.executable, *server_arguments(cluster), "--die_with_parent", "--linger=12"]
        address = supervisor.processes()[1].address
        with subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
        ) as server:
            assert server.stdout is not None
            assert server.stdout.readline().startswith(f"ps 1 ready at {address}")
            # Nobody listens at ps 0's address, and no filter says not to wait for it: a server that
            # isn't alone would wait for ever, so it is killed then.
            limit = threading.Timer(60, server.kill)
            limit.start()
            assert _ask(address, "/job:ps/task:1", [])[0] == 10.0
            limit.cancel()
            del environment["TF_GRPC_REUSE_PORT"]
            second = subprocess.run(
                command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120
            )
            assert second.returncode == 2
            assert f"error: TF_CONFIG: ps 1 can't listen on the port of {address}" in second.stderr
            server.send_signal(signal.SIGTERM)
            assert _ask(address, "/job:ps/task:1", [])[0] == 10.0
        assert server.returncode == TERMINATED


def test_a_server_can_die_with_its_parent():
    child = (
        "import time; from modules.training.cluster.orphans import die_with_parent;"
        "die_with_parent(); print('tied', flush=True); time.sleep(600)"
    )
    parent = (
        "import subprocess, sys, time;"
        f"child = subprocess.Popen([sys.executable, '-c', {child!r}], stdout=subprocess.PIPE);"
        "child.stdout.readline(); print(child.pid, flush=True); time.sleep(600)"
    )
    with subprocess.Popen(python(parent), cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        assert runs(pid)
        process.kill()
    until(lambda: not runs(pid), "the child died with it")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "TF_CONFIG: not set"),
        (
            json.dumps({"cluster": {"chief": ["a:1"]}, "task": {"type": "chief", "index": 0}}),
            "a chief runs the training command",
        ),
        ("{", "TF_CONFIG: not JSON"),
    ],
)
def test_without_a_place_it_says_so(text, said, monkeypatch, capsys):
    monkeypatch.setenv("TF_CONFIG", text)
    assert main([]) == 2
    assert said in capsys.readouterr().err


def test_dials_become_arguments():
    raw = {
        "placement": "parameter_server",
        "processes": {"worker": 1, "ps": 1},
        "threads": {"intra_op": 2, "inter_op": 6},
    }
    assert server_arguments(parse_cluster(raw))[2:] == ["--intra_op=2", "--inter_op=6"]
