"""A local cluster of real processes: what dies comes back, and nothing is left."""

from __future__ import annotations

import os
import pathlib
import resource
import signal
import socket

import pytest

from modules.training.cluster.config import ROLES, Cluster, ClusterError, parse_cluster
from modules.training.cluster.events import CLUSTER_EVENTS, EventLog, read_events
from modules.training.cluster.process import ProcessInfo
from modules.training.cluster.supervisor import ClusterFailed, Supervisor
from tests.cluster.processes import SERVER, SLEEP, python, runs, until, until_written


def _cluster(placement: str, **keys: object) -> Cluster:
    return parse_cluster({"placement": placement, **keys})


def _servers() -> dict:
    return {"ps": python(SERVER), "worker": python(SERVER)}


def _of(supervisor: Supervisor, name: str) -> ProcessInfo:
    return next(p for p in supervisor.processes() if f"{p.role} {p.index}" == name)


def _until_running(supervisor: Supervisor) -> None:
    until(lambda: all(p.state == "running" for p in supervisor.processes()), "all running")


def _events(supervisor: Supervisor, name: str) -> list[tuple]:
    events = read_events(supervisor.folder / CLUSTER_EVENTS)
    return [
        (e["event"], e.get("signal", e.get("exit_code")))
        for e in events
        if f"{e.get('role')} {e.get('index')}" == name
    ]


def _kill(pid: int | None) -> None:
    assert pid is not None
    os.kill(pid, signal.SIGKILL)


def test_a_killed_server_comes_back_at_its_address(tmp_path):
    cluster = _cluster("parameter_server", processes={"worker": 1, "ps": 2})
    with Supervisor(cluster, tmp_path, {"chief": SLEEP, **_servers()}) as supervisor:
        _until_running(supervisor)
        before = _of(supervisor, "ps 1")
        assert before.rss_bytes > 1 << 20
        _kill(before.pid)
        until(lambda: _of(supervisor, "ps 1").restarts == 1, "ps 1 restarted")
        _until_running(supervisor)
        after = _of(supervisor, "ps 1")
        assert after.address == before.address
        assert after.pid != before.pid
        assert [p.restarts for p in supervisor.processes()] == [0, 0, 0, 1]
        host, port = after.address.split(":")
        socket.create_connection((host, int(port))).close()
    last = _events(supervisor, "ps 1")
    assert [event for event, _ in last] == ["start", "ready", "death", "restart", "ready", "end"]
    assert ("death", "SIGKILL") in last
    ready = [e for e in read_events(tmp_path / CLUSTER_EVENTS) if e["event"] == "ready"][-1]
    assert ready["seconds_out"] > 0
    assert all(p.state == "stopped" and p.pid is None for p in supervisor.processes())


def test_a_killed_chief_is_started_again_and_its_end_ends_the_cluster(tmp_path):
    chief = python(
        f"import pathlib, time; once = pathlib.Path({str(tmp_path / 'once')!r})\n"
        "if not once.exists(): once.write_text('x\\n'); time.sleep(600)"
    )
    with Supervisor(_cluster("single"), tmp_path, {"chief": chief}) as supervisor:
        until_written(tmp_path / "once")
        _kill(_of(supervisor, "chief 0").pid)
        assert supervisor.wait(60) == 0
    assert _events(supervisor, "chief 0") == [
        ("start", None),
        ("death", "SIGKILL"),
        ("restart", None),
        ("done", None),
    ]


def test_a_preempted_chief_is_started_again_and_not_held_against_it(tmp_path):
    chief = python(
        f"import pathlib, sys; once = pathlib.Path({str(tmp_path / 'once')!r})\n"
        "if not once.exists(): once.write_text('x'); sys.exit(75)"
    )
    cluster = _cluster("single", max_restarts=0)
    with Supervisor(cluster, tmp_path, {"chief": chief}) as supervisor:
        assert supervisor.wait(60) == 0
    assert ("preempted", 75) in _events(supervisor, "chief 0")


def test_a_preempted_group_is_not_disturbed_while_it_saves(tmp_path):
    chief = python(
        "import pathlib, signal, sys, time\n"
        f"folder = pathlib.Path({str(tmp_path)!r}); once = folder / 'once'\n"
        "if once.exists(): sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, lambda *_: (folder / 'signalled').touch())\n"
        "once.touch(); time.sleep(1.5); (folder / 'saved').touch(); sys.exit(75)"
    )
    worker = python(
        "import pathlib, sys, time\n"
        f"folder = pathlib.Path({str(tmp_path)!r})\n"
        "while not (folder / 'once').exists(): time.sleep(0.05)\n"
        "sys.exit(0 if (folder / 'saved').exists() else 75)"
    )
    cluster = _cluster("multi_worker_mirrored", processes={"worker": 1})
    with Supervisor(cluster, tmp_path, {"chief": chief, "worker": worker}) as supervisor:
        assert supervisor.wait(60) == 0
    assert (tmp_path / "saved").exists()
    assert not (tmp_path / "signalled").exists()


def test_an_exception_after_a_long_life_is_a_new_one(tmp_path):
    chief = python("import time; time.sleep(0.3); raise ValueError")
    cluster = _cluster("single", restart_window=0.1, max_restarts=1)
    lives = 4
    with Supervisor(cluster, tmp_path, {"chief": chief}, backoff_seconds=0.01) as supervisor:
        until(lambda: _of(supervisor, "chief 0").restarts >= lives, f"{lives} restarts")


def test_exhausted_restarts_stop_everything_and_say_why(tmp_path):
    cluster = _cluster("parameter_server", processes={"worker": 1, "ps": 1}, max_restarts=2)
    commands = {
        "chief": python("import sys; print('the disk is full'); sys.exit(76)"),
        **_servers(),
    }
    with (
        pytest.raises(ClusterFailed) as error,
        Supervisor(cluster, tmp_path, commands, backoff_seconds=0.01) as supervisor,
    ):
        supervisor.wait(60)
    message = str(error.value)
    assert message.startswith("chief 0 ended with exit code 76 after 2 restarts (max_restarts: 2)")
    assert str(tmp_path / "logs/chief-0.log") in message
    assert message.count("the disk is full") == 3
    assert all(p.pid is None for p in supervisor.processes())
    assert _events(supervisor, "chief 0")[-1] == ("failed", 76)


def test_a_signal_that_exhausts_restarts_is_named(tmp_path):
    chief = python("import os; os.kill(os.getpid(), 9)")
    cluster = _cluster("single", max_restarts=0)
    with (
        pytest.raises(ClusterFailed, match="chief 0 was killed by SIGKILL after 0 restarts"),
        Supervisor(cluster, tmp_path, {"chief": chief}) as supervisor,
    ):
        supervisor.wait(60)


def test_a_command_that_is_not_there_is_named(tmp_path):
    with (
        pytest.raises(ClusterFailed, match="chief 0 can't be started: .*no-such-command"),
        Supervisor(_cluster("single"), tmp_path, {"chief": ["no-such-command"]}) as supervisor,
    ):
        supervisor.wait(60)


def test_restarts_older_than_the_window_are_forgotten(tmp_path):
    count = tmp_path / "count"
    chief = python(
        f"import pathlib, sys, time; count = pathlib.Path({str(count)!r})\n"
        "with count.open('a') as file: file.write('x')\n"
        "time.sleep(0.3)\n"
        "sys.exit(76 * (len(count.read_text()) < 4))"
    )
    cluster = _cluster("single", max_restarts=1, restart_window=0.1)
    with Supervisor(cluster, tmp_path, {"chief": chief}, backoff_seconds=0.01) as supervisor:
        assert supervisor.wait(60) == 0
    assert _of(supervisor, "chief 0").restarts == 3


def test_trainers_of_one_group_are_restarted_together(tmp_path):
    cluster = _cluster("multi_worker_mirrored", processes={"worker": 2})
    with Supervisor(cluster, tmp_path, {"chief": SLEEP}) as supervisor:
        _until_running(supervisor)
        before = [p.pid for p in supervisor.processes()]
        _kill(before[1])
        until(lambda: [p.restarts for p in supervisor.processes()] == [1, 1, 1], "all restarted")
        _until_running(supervisor)
        assert not set(before) & {p.pid for p in supervisor.processes()}
        assert not any(runs(pid) for pid in before if pid)
    # Nobody starts before everybody has died.
    events = [e["event"] for e in read_events(tmp_path / CLUSTER_EVENTS)]
    assert events[3:9] == ["death"] * 3 + ["restart"] * 3


def test_a_trainer_that_ends_before_the_chief_is_done_not_dead(tmp_path):
    chief = python(
        f"import pathlib, time\nwhile not pathlib.Path({str(tmp_path / 'go')!r}).exists():"
        " time.sleep(0.05)"
    )
    cluster = _cluster("multi_worker_mirrored", processes={"worker": 1})
    commands = {"chief": chief, "worker": python("")}
    with Supervisor(cluster, tmp_path, commands) as supervisor:
        until(lambda: _of(supervisor, "worker 0").state == "done", "worker done")
        (tmp_path / "go").touch()
        assert supervisor.wait(60) == 0
    assert _events(supervisor, "worker 0") == [("start", None), ("done", None)]


SAVING_CHIEF = """
import json, os, pathlib, signal, socket, sys, time
def save(*_):
    ps = json.loads(os.environ["TF_CONFIG"])["cluster"]["ps"][0].split(":")
    time.sleep(0.3)
    socket.create_connection((ps[0], int(ps[1])))  # what it saves is still there
    pathlib.Path({saved!r}).write_text("saved\\n")
    sys.exit(75)
signal.signal(signal.SIGTERM, save)
pathlib.Path({ready!r}).write_text("ready\\n")
while True: time.sleep(0.05)
"""


def test_stop_lets_the_chief_save_while_servers_still_serve(tmp_path):
    saved, ready = tmp_path / "saved", tmp_path / "ready"
    chief = python(SAVING_CHIEF.format(saved=str(saved), ready=str(ready)))
    cluster = _cluster("hybrid", processes={"ps": 1})
    with Supervisor(cluster, tmp_path, {"chief": chief, **_servers()}) as supervisor:
        until_written(ready)
        _until_running(supervisor)
        supervisor.stop()
        assert supervisor.wait(60) == 75
    assert until_written(saved) == "saved\n"
    ends = [e["role"] for e in read_events(tmp_path / CLUSTER_EVENTS) if e["event"] == "end"]
    assert ends == ["chief", "ps"]


def test_a_chief_that_ignores_the_signal_is_killed_after_the_grace(tmp_path):
    ready = tmp_path / "ready"
    chief = python(
        "import pathlib, signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        f"pathlib.Path({str(ready)!r}).write_text('ready\\n'); time.sleep(600)"
    )
    cluster = _cluster("single", grace_seconds=1)
    with Supervisor(cluster, tmp_path, {"chief": chief}) as supervisor:
        until_written(ready)
        supervisor.stop()
        assert supervisor.wait(60) == 128 + signal.SIGKILL


def test_nothing_is_left_not_even_what_left_its_session(tmp_path):
    pids = tmp_path / "pids"
    chief = python(
        "import os, pathlib, subprocess\n"
        "far = subprocess.Popen(['sleep', '600'], start_new_session=True)\n"
        "near = subprocess.Popen(['sleep', '600'])\n"
        f"pathlib.Path({str(pids)!r}).write_text(f'{{far.pid}} {{near.pid}}\\n')"
    )
    with Supervisor(_cluster("single"), tmp_path, {"chief": chief}) as supervisor:
        assert supervisor.wait(60) == 0
    children = [int(pid) for pid in until_written(pids).split()]
    assert len(children) == 2
    assert not any(runs(pid) for pid in children)


def test_an_error_in_the_body_takes_the_cluster_down(tmp_path):
    with (
        pytest.raises(KeyboardInterrupt),
        Supervisor(_cluster("single"), tmp_path, {"chief": SLEEP}) as supervisor,
    ):
        until(lambda: _of(supervisor, "chief 0").pid is not None, "chief started")
        pid = _of(supervisor, "chief 0").pid
        raise KeyboardInterrupt
    assert pid is not None
    assert not runs(pid)


def test_wait_can_give_up_without_ending_the_cluster(tmp_path):
    with Supervisor(_cluster("single"), tmp_path, {"chief": SLEEP}) as supervisor:
        with pytest.raises(TimeoutError, match="still runs"):
            supervisor.wait(0.01)
        until(lambda: _of(supervisor, "chief 0").state == "running", "chief running")
        assert not supervisor.ended


def test_a_port_is_ours_while_its_server_is_down(tmp_path):
    cluster = _cluster("hybrid", processes={"ps": 1})
    commands = {"chief": SLEEP, "ps": SLEEP}
    with Supervisor(cluster, tmp_path, commands) as supervisor:
        port = int(_of(supervisor, "ps 0").address.split(":")[1])
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind(("", port))
        assert _of(supervisor, "ps 0").state in ("waiting", "starting")  # it never listens


def test_without_a_chief_only_servers_run(tmp_path):
    cluster = _cluster("hybrid", processes={"ps": 1, "worker": 1})
    with Supervisor(cluster, tmp_path, {"ps": python(SERVER)}) as supervisor:
        _until_running(supervisor)
        assert [p.role for p in supervisor.processes()] == ["ps"]
        supervisor.stop()
        assert supervisor.wait(60) == 0


def test_cpu_seconds_count_every_life(tmp_path):
    chief = python(
        f"import pathlib, sys, time; once = pathlib.Path({str(tmp_path / 'once')!r})\n"
        "while time.process_time() < 0.5: pass\n"
        "if not once.exists(): once.write_text('x'); sys.exit(1)"
    )
    with Supervisor(_cluster("single"), tmp_path, {"chief": chief}) as supervisor:
        assert supervisor.wait(60) == 0
    assert 1.0 <= _of(supervisor, "chief 0").cpu_seconds < 2.0


def test_processes_elsewhere_are_refused(tmp_path):
    cluster = _cluster("hybrid", addresses={"chief": ["a:1"], "ps": ["b:1"]})
    with pytest.raises(ClusterError, match="addresses: .*started elsewhere"):
        Supervisor(cluster, tmp_path, {"chief": SLEEP})


def test_events_wait_for_room_on_the_disk(tmp_path: pathlib.Path):
    path = tmp_path / CLUSTER_EVENTS
    log = EventLog(path)
    log.add("start", role="chief")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 5, limits[1]))
    try:
        log.add("death", role="chief")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [e["event"] for e in read_events(path)] == ["start"]
    log.flush()
    assert [e["event"] for e in read_events(path)] == ["start", "death"]


CORES = """
import os, pathlib, sys, time
told = os.environ.get("TF_NUM_INTRAOP_THREADS")
pathlib.Path({folder!r}, sys.argv[1]).write_text(f"{{told}}\\n")
time.sleep(600)
"""


@pytest.mark.parametrize("chosen", [None, "3"])
def test_processes_that_compute_share_the_cores(tmp_path, monkeypatch, chosen):
    monkeypatch.delenv("TF_NUM_INTRAOP_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(8))
    commands = {role: [*python(CORES.format(folder=str(tmp_path))), role] for role in ROLES}
    cluster = _cluster("parameter_server", processes={"worker": 2, "ps": 1})
    environment = {"TF_NUM_INTRAOP_THREADS": chosen} if chosen else {}
    with Supervisor(cluster, tmp_path / "state", commands, environment=environment):
        told = {role: until_written(tmp_path / role).strip() for role in ROLES}
    others = str(chosen)
    assert told == {"chief": others, "worker": chosen or "4", "ps": others}
