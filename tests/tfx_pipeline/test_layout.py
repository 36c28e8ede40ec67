"""A run's folder: whose it may be."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import pathlib

import pytest

from tfx_pipeline.layout import Layout, OutputError


def _write(folder: pathlib.Path, *files: str) -> Layout:
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text("")
    return Layout(folder)


@pytest.mark.parametrize(
    "files",
    [
        [],
        ["logs/run.log"],  # killed at once
        ["logs/run.log", ".probe"],
        ["logs/run.log", "spec.json"],  # killed while it wrote that
        ["logs/run.log", "data/events-0.parquet"],  # while it simulated
        ["data/events-0.parquet"],  # `simulate`, with its default
        ["logs/run.log", "metadata.sqlite", "notes.txt"],
        ["pipeline/Transform/1/graph", "notes.txt"],
    ],
)
def test_a_new_folder_and_one_of_a_killed_run_are_taken(tmp_path, files):
    _write(tmp_path, *files).require_for("shop", "")


def test_a_folder_that_is_not_there_is_taken(tmp_path):
    Layout(tmp_path / "new").require_for("shop", "")


@pytest.mark.parametrize("file", ["page.md", "shop/1/notes", "database.sqlite"])
def test_a_folder_of_other_files_is_refused(tmp_path, file):
    layout = _write(tmp_path, "data/a.csv", "logs/a.log", file)
    with pytest.raises(OutputError, match=f"--output: {tmp_path} holds files, and none of a run"):
        layout.require_for("shop", "")


@pytest.mark.parametrize("data", ["", "events"])
def test_a_run_beside_its_own_events_is_taken(tmp_path, data):
    _write(tmp_path, "events/a.csv", "shop.yaml").require_for("shop", str(tmp_path / data))


def test_events_beside_the_folder_make_nothing_its_own(tmp_path):
    layout = _write(tmp_path / "thesis", "thesis.md")
    with pytest.raises(OutputError, match="holds files, and none of a run"):
        layout.require_for("shop", str(tmp_path / "thesis" / ".." / "events"))


def test_a_folder_is_one_runs_at_a_time(tmp_path):
    first, second = Layout(tmp_path), Layout(tmp_path)
    with (
        first.claimed(),
        pytest.raises(OutputError, match=f"--output={tmp_path}: another run writes here"),
        second.claimed(),
    ):
        pass
    with second.claimed():
        second.require_for("shop", "")  # the lock's file is nobody's


def test_a_folder_that_cannot_be_locked_is_said(tmp_path, monkeypatch):
    def flock(file, how):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    with (
        pytest.raises(OutputError, match=f"--output={tmp_path}: can't be locked: No locks"),
        Layout(tmp_path).claimed(),
    ):
        pass


@pytest.mark.parametrize("data", ["", "."])
def test_a_run_is_of_one_spec(tmp_path, data):
    layout = _write(tmp_path, "notes.txt")
    layout.spec.write_text(json.dumps({"name": "shop"}))
    layout.require_for("shop", data)
    with pytest.raises(OutputError, match="is the run of 'shop'; give 'other' a folder of its own"):
        layout.require_for("other", data and str(tmp_path))
