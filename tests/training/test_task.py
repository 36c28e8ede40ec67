"""A trainer's command says in one line that it is asked for wrongly, or can't go on."""

from __future__ import annotations

import pytest

from modules.training.checkpoint.store import Checkpoints
from modules.training.cluster.config import parse_cluster, tf_config
from modules.training.task import TrainingTask, main


@pytest.mark.parametrize(
    ("elsewhere", "said"),
    [
        ({"chief": ["a:1"]}, "TF_CONFIG: not a valid cluster:\n  placement: hybrid needs"),
        (None, "TF_CONFIG: not JSON"),
    ],
)
def test_a_tf_config_that_does_not_fit_is_one_error(elsewhere, said, tmp_path, monkeypatch, capsys):
    cluster = parse_cluster({"placement": "hybrid", "processes": {"ps": 1}})
    path = tmp_path / "task.json"
    task = TrainingTask(phase="finetune", fn_args={}, cluster=cluster, folder=str(tmp_path))
    path.write_text(task.model_dump_json())
    place = tf_config(parse_cluster({"addresses": elsewhere}), "chief", 0) if elsewhere else "{"
    monkeypatch.setenv("TF_CONFIG", place)
    assert main([f"--task={path}"]) == 2
    assert capsys.readouterr().err.startswith(f"error: {path}: {said}")


def test_checkpoints_that_cannot_be_used_are_one_line(tmp_path, monkeypatch, capsys):
    from modules.training import train

    monkeypatch.setattr(train, "train", lambda *_: Checkpoints(tmp_path, "run").latest())
    monkeypatch.delenv("TF_CONFIG", raising=False)
    (tmp_path / "damaged-step-000000100").mkdir()
    task = TrainingTask(
        phase="finetune", fn_args={}, cluster=parse_cluster({}), folder=str(tmp_path)
    )
    (tmp_path / "task.json").write_text(task.model_dump_json())
    assert main([f"--task={tmp_path / 'task.json'}"]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"error: {tmp_path}: all checkpoints are damaged")
    assert len(said.splitlines()) == 1
