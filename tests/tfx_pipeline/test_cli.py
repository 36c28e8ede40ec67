"""The command line: what it refuses, how fast, and in which words."""

from __future__ import annotations

import json
import os
import pathlib
import re
import subprocess
import sys

import pytest
import yaml

from data.simulator import simulator_spec
from tests.data.small import small_spec
from tests.repo.source_tree import ROOT
from tfx_pipeline.__main__ import COMMANDS, main

_PROBE = (
    "import sys; from tfx_pipeline.__main__ import main; code = main(sys.argv[1:]);"
    "print('\\nheavy:', sorted({'tensorflow', 'tfx', 'apache_beam'} & set(sys.modules)));"
    "sys.exit(code)"
)


def _run(*arguments: str, cwd: pathlib.Path = ROOT) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", _PROBE, *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)


def _write_spec(folder: pathlib.Path, change) -> str:
    raw = simulator_spec()
    change(raw)
    path = folder / "spec.yaml"
    path.write_text(yaml.safe_dump(raw))
    return str(path)


def _channel(raw: dict, scope: str, name: str) -> dict:
    return next(c for c in raw["channels"] if (c["scope"], c["name"]) == (scope, name))


def _unknown_key(raw):
    raw["sequence"]["max_lenght"] = 64


def _duplicate_channel(raw):
    raw["channels"].append(dict(_channel(raw, "sequence", "product")))


def _shared_table_with_other_dim(raw):
    _channel(raw, "sequence", "product")["dim"] = 8
    _channel(raw, "candidate", "product")["dim"] = 7


def _label_as_candidate(raw):
    _channel(raw, "candidate", "price")["column"] = "click_label"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_unknown_key, "sequence.max_lenght: unknown key; did you mean 'max_length'?"),
        (_duplicate_channel, "channels: sequence channel 'product' is declared twice"),
        (
            _shared_table_with_other_dim,
            "channels: table 'product' is shared with different dim: sequence product=8",
        ),
        (_label_as_candidate, "candidate channel 'price' reads 'click_label', an outcome"),
    ],
)
def test_a_bad_spec_is_one_message_at_once(tmp_path, change, said):
    path = _write_spec(tmp_path, change)
    asked = _run("run", f"--spec={path}", f"--data={tmp_path}", f"--output={tmp_path}/run")
    assert asked.returncode == 2
    message = asked.stderr.strip().splitlines()
    assert message[0] == f"error: {path}: not a valid spec:"
    assert len(message) == 2 and said in message[1]
    assert "heavy: []" in asked.stdout
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["fly"], "no command 'fly'; there are: run, simulate"),
        (["run", "--spec=nope"], "nope: no such spec. Give a YAML file or one of:"),
        (["run", "--spec=kuairand_pure"], "--data: give the folder that the events of"),
        (["run", "--data=nowhere"], "--data=nowhere: no such folder"),
        (["run", "--usres=5"], "Unknown command line flag 'usres'"),
        (["run", "--users=0"], "flag --users=0"),
        (["run", "--users=abc"], "error: --users: a whole number, not 'abc'"),
        (
            ["run", "--spec=movielens_1m", "--data=.", "--users=9"],
            "--users: only goes with --spec=",
        ),
        (["run", "runs/here"], "run takes only flags (--name=value), not 'runs/here'"),
        (["run", "--output=/proc/nothing"], "--output=/proc/nothing: can't be written"),
        (["serve", "--output=nowhere"], "no pushed model; `run --output="),
        (["predict", "--output=nowhere"], "no pushed model; `run --output="),
        (["serve", "--host=0.0.0.0"], "'host'; flags of serving.server go after `--`"),
        (["run", "--", "--host=0.0.0.0"], "run passes nothing on, so it takes nothing after `--`"),
    ],
)
def test_a_wrong_call_is_one_line(tmp_path, arguments, said):
    asked = _run(*arguments, cwd=tmp_path)
    assert asked.returncode == 2
    (message,) = asked.stderr.strip().splitlines()
    assert message.startswith("error: ") and said in message
    assert "heavy: []" in asked.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({}, "source.users: no files match"),
        ({"users.parquet": b"PAR1"}, "users.parquet: can't be read: "),
        (
            {"users.csv": b"user_id,city\n", "events.csv": b"user_id,time_ms\n"},
            "users.csv: missing column 'age' (context channel 'age'); 'level' (label of task",
        ),
        ({"users.csv": b""}, "users.csv: empty file, without even a header"),
        ({"users.csv.gz": b"\x1f\x8b\x08"}, "users.csv.gz: can't be read to its end: "),
    ],
)
def test_unusable_files_are_one_line_at_once(tmp_path, files, said):
    """Before TFX is imported, and before anything is written."""
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(small_spec().model_dump(mode="json")))
    data = tmp_path / "data"
    data.mkdir()
    for name, content in {"events.csv": b"user_id\n", **files}.items():
        (data / name).write_bytes(content)
    asked = _run("run", f"--spec={tmp_path}/spec.yaml", f"--data={data}", f"--output={tmp_path}/o")
    assert asked.returncode == 2
    (message,) = asked.stderr.strip().splitlines()
    assert message.startswith("error: ") and said in message
    assert "heavy: []" in asked.stdout
    assert not (tmp_path / "o").exists()


def test_an_output_folder_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "taken").write_text("")
    asked = _run("run", f"--output={tmp_path}/taken")
    assert asked.returncode == 2
    assert f"--output={tmp_path}/taken: can't be written: " in asked.stderr
    assert "Traceback" not in asked.stderr


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        (
            "spec.json",
            '{"name": "shopcsv"}',
            "{} is the run of 'shopcsv'; give 'simulator' a folder of its own",
        ),
        ("simulator.md", "# Results", "{} holds files, and none of a run; give a new folder"),
    ],
)
def test_a_folder_of_something_else_is_refused_and_left_alone(tmp_path, file, content, said):
    (tmp_path / file).write_text(content)
    asked = _run("run", f"--output={tmp_path}")
    assert asked.returncode == 2
    assert asked.stderr == f"error: --output: {said.format(tmp_path)}\n"
    assert [path.name for path in tmp_path.iterdir()] == [file]
    assert (tmp_path / file).read_text() == content


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_an_output_folder_without_permission_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    asked = _run("run", f"--output={tmp_path}/run")
    assert asked.returncode == 2
    assert "can't be written: Permission denied" in asked.stderr


def test_help_names_every_command_and_flag_without_loading_tensorflow():
    overview = _run("--help")
    assert overview.returncode == 0
    assert all(f"\n  {name} " in overview.stdout for name in COMMANDS)
    assert "heavy: []" in overview.stdout
    flags = _run("run", "--help").stdout
    assert all(f"--{name} " in flags for name in ("spec", "data", "output", "users", "seed"))


@pytest.mark.parametrize(
    ("command", "flag", "end"),
    [
        ("compare", "seeds", "Seeds of each model. (default: 0,1,2)"),
        ("compare", "reference", "tested against (default: the first)."),
        ("plan", "rows", "instead of a bound."),
    ],
)
def test_help_shows_a_default_as_it_is_given(command, flag, end):
    told = _run(command, "--help").stdout
    (line,) = re.findall(rf"^  --{flag} .*$", told, re.MULTILINE)
    assert line.endswith(end)


def test_help_keeps_flags_and_what_they_mean_apart():
    told = _run("serve", "--help").stdout
    assert "[-- flags of python -m serving.server]" in told
    assert re.search(r"^  --rest_api_port  REST port", told, re.MULTILINE)


@pytest.mark.parametrize(
    ("command", "module"), [("serve", "serving.server"), ("predict", "serving.client")]
)
def test_flags_after_two_dashes_go_on_to_what_a_command_becomes(
    tmp_path, monkeypatch, command, module
):
    (tmp_path / "serving/shop/1").mkdir(parents=True)
    examples = tmp_path / "pipeline/SequenceExampleGen/examples/1/Split-eval"
    examples.mkdir(parents=True)
    (examples / "a.gz").touch()
    became = []
    monkeypatch.setattr("os.execv", lambda _, arguments: became.append(arguments))
    main([command, f"--output={tmp_path}", "--model=shop", "--", "--host=0.0.0.0", "--help"])
    ((_, *arguments),) = became
    assert arguments[:2] == ["-m", module]
    assert arguments[-2:] == ["--host=0.0.0.0", "--help"]
    assert any(argument.endswith("shop") for argument in arguments)


def test_simulate_writes_events_and_says_the_ceiling(tmp_path):
    done = _run("simulate", f"--output={tmp_path}/events", "--users=300", "--items=100")
    assert done.returncode == 0, done.stderr
    manifest = json.loads((tmp_path / "events/simulation.json").read_text())
    assert manifest["num_users"] == 300 and manifest["num_items"] == 100
    assert "oracle AUC" in done.stdout and "credit_pay" in done.stdout
    other = _run("simulate", f"--output={tmp_path}/events", "--users=301", "--items=100")
    assert other.returncode == 2
    assert "Traceback" not in other.stderr
