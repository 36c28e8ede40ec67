"""The client's command line."""

import json

import numpy as np

from serving.client import __main__ as command
from tests.serving.users import USER, sigmoid


def test_command_line(server, tmp_path, capsys):
    file = tmp_path / "users.jsonl"
    file.write_text(json.dumps(USER) + "\n" + json.dumps({**USER, "user_id": "u2"}) + "\n")
    flags = ["--target", server.target, "--model", "users", "--examples", str(file)]
    assert command.main(flags) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["user_id"] for row in rows] == ["u1", "u2"]
    np.testing.assert_allclose(rows[0]["click"], sigmoid([0.8, -0.7, 2.3]), atol=1e-6)
    assert command.main([*flags, "--signature", "embed", "--limit", "1"]) == 0
    (row,) = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert row == {"embedding": [0.3, 0.002, -0.3, 0.6], "user_id": "u1"}


def test_command_line_errors_are_one_line(server, tmp_path, capsys):
    flags = ["--target", server.target, "--examples", str(tmp_path / "none.jsonl")]
    assert command.main(flags) == 1
    assert capsys.readouterr().err.count("\n") == 1
    (tmp_path / "users.jsonl").write_text(json.dumps(USER))
    flags = ["--target", "127.0.0.1:1", "--examples", str(tmp_path / "users.jsonl")]
    assert command.main(flags) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "127.0.0.1:1" in error and "Traceback" not in error
