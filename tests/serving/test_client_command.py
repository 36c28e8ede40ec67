"""The client's command line."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from serving.client import __main__ as command
from tests.serving.users import USER, sigmoid


def test_command_line(server, tmp_path, capsys):
    file = tmp_path / "users.jsonl"
    file.write_text(json.dumps(USER) + "\n" + json.dumps({**USER, "user_id": "u2"}) + "\n")
    flags = ["--target", server.target, "--model", "users", "--examples", str(file)]
    assert command.main(flags) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["user_id"] for row in rows] == ["u1", "u2"]
    assert [list(row) for row in rows] == [["user_id", "candidates", "click", "vip"]] * 2
    np.testing.assert_allclose(rows[0]["click"], sigmoid([0.8, -0.7, 2.3]), atol=1e-6)
    assert command.main([*flags, "--signature", "embed", "--limit", "1"]) == 0
    (row,) = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert row == {"embedding": [0.3, 0.002, -0.3, 0.6], "user_id": "u1"}


def test_command_line_errors_are_one_line(server, tmp_path, capsys):
    missing = tmp_path / "none.jsonl"
    # Whatever there is of a server: the file comes first.
    assert command.main(["--target=127.0.0.1:1", f"--examples={missing}", "--wait=60"]) == 1
    error = capsys.readouterr().err
    assert error == f"error: {missing}: can't be read: No such file or directory\n"
    (tmp_path / "users.jsonl").write_text(json.dumps(USER))
    examples = f"--examples={tmp_path}/users.jsonl"
    assert command.main(["--target=127.0.0.1:1", examples]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "answers at 127.0.0.1:1: nothing listens there" in error
    assert error.endswith("; --wait=60 waits for a server that is starting\n")
    for wait in ((), ("--wait=0.3",)):
        assert command.main(["--target", server.target, examples, *wait]) == 1
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and error.endswith("; has the server --model=default?\n")


def ask(server, folder: pathlib.Path, user: dict, *flags: str) -> int:
    """One user of the model `channels`; the exit code."""
    (folder / "users.jsonl").write_text(json.dumps(user))
    common = ["--target", server.target, "--model", "channels"]
    return command.main([*common, "--examples", str(folder / "users.jsonl"), *flags])


def test_features_are_written_as_the_model_takes_them(channels, tmp_path, capsys):
    user = {"sequence_item": [3.0, 4], "sequence_tag": [None, None], "candidate_price": [9]}
    assert ask(channels, tmp_path, {**user, "context_age": 30}) == 0
    assert json.loads(capsys.readouterr().out)["click"] == [9 + 30 + 7]
    unknown = {"sequence_item": [None, None], "candidate_price": [None], "context_age": None}
    assert ask(channels, tmp_path, unknown) == 0
    assert json.loads(capsys.readouterr().out)["click"] == [None]


@pytest.mark.parametrize(
    ("user", "said"),
    [
        ({"sequence_itm": [3]}, "no feature 'sequence_itm'; did you mean sequence_item"),
        ({"sequence_item": [1.5]}, "sequence_item: expected int64, got 1.5 (float)"),
    ],
)
def test_a_wrong_feature_is_one_line_with_its_place(channels, tmp_path, capsys, user, said):
    assert ask(channels, tmp_path, user) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: {tmp_path}/users.jsonl, line 1: ") and said in error
    assert error.count("\n") == 1


def test_waiting_for_a_model(channels, tmp_path, capsys):
    user = {"candidate_price": [1], "context_age": 1}
    assert ask(channels, tmp_path, user, "--wait=20") == 0
    assert ask(channels, tmp_path, user, "--wait=0.5", "--model=nobody") == 1
    error = capsys.readouterr().err
    assert "DEADLINE_EXCEEDED: model 'nobody' isn't available after 0.5 s: Could not find" in error


def test_help_names_the_program_that_was_started():
    script = "from serving.client.__main__ import main; main(['--help'])"
    for command_line, name in (
        (["-m", "serving.client", "--help"], "python -m serving.client"),
        (["-c", f"import sys; sys.argv[0] = 'bin/universal-user-client'; {script}"], None),
    ):
        told = subprocess.run([sys.executable, *command_line], capture_output=True, text=True)
        assert told.stdout.startswith(f"usage: {name or 'universal-user-client'} ")
        for default in ("localhost:8500", "default", "serving_default", "10"):
            assert f"(default: {default})" in " ".join(told.stdout.split())
