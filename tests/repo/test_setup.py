"""tools/find_python finds a 3.10 that works, and says what to do where there is none."""

import pathlib
import re
import subprocess
import sys

import pytest

from tests.repo.source_tree import ROOT


def _find(tmp_path: pathlib.Path, **environment: str) -> subprocess.CompletedProcess:
    """Runs it with nothing but a shell on PATH, beside what `tmp_path/bin` holds."""
    return subprocess.run(
        ["/bin/sh", str(ROOT / "tools/find_python")],
        env={"PATH": str(tmp_path / "bin"), "HOME": str(tmp_path), **environment},
        capture_output=True,
        text=True,
    )


def _script(path: pathlib.Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def test_a_lying_shim_is_passed_over_for_pyenv(tmp_path):
    _script(tmp_path / "bin/python3.10", "echo 'pyenv: command not found' >&2; exit 127")
    real = tmp_path / "pyenv/versions/3.10.9/bin/python3.10"
    _script(real, f'exec "{sys.executable}" "$@"')
    found = _find(tmp_path, PYENV_ROOT=str(tmp_path / "pyenv"))
    assert found.returncode == 0
    assert found.stdout.strip() == sys.executable


def test_another_version_under_the_right_name_is_not_taken(tmp_path):
    _script(tmp_path / "python", 'case "$2" in *"3, 10"*) exit 1;; esac; echo /no/such/python')
    found = _find(tmp_path, PYTHON=str(tmp_path / "python"))
    assert found.returncode == 1
    assert f"PYTHON={tmp_path}/python is not a working Python 3.10" in found.stderr


@pytest.mark.skipif(
    any(
        pathlib.Path(folder, "python3.10").exists()
        for folder in ("/usr/bin", "/usr/local/bin", "/opt/homebrew/bin")
    ),
    reason="this machine has a Python 3.10 in a fixed place",
)
def test_without_any_it_says_how_to_get_one(tmp_path):
    (tmp_path / "bin").mkdir()
    found = _find(tmp_path)
    assert found.returncode == 1
    assert found.stdout == ""
    for way in ("apt-get install python3.10", "pyenv install 3.10", "uv python install 3.10"):
        assert way in found.stderr


def test_an_unchanged_lock_is_not_installed_again(tmp_path):
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools/setup").write_text((ROOT / "tools/setup").read_text())
    _script(tmp_path / "tools/find_python", "echo 'asked for a Python'; exit 1")
    (tmp_path / "requirements.txt").write_text("rich==15.0.0\n")
    _script(tmp_path / ".venv/bin/python", "exit 0")
    (tmp_path / ".venv/requirements.txt").write_text("rich==15.0.0\n")

    def run() -> int:
        return subprocess.run(
            ["/bin/sh", "tools/setup"], cwd=tmp_path, capture_output=True
        ).returncode

    assert run() == 0
    (tmp_path / "requirements.txt").write_text("rich==15.0.1\n")
    assert run() == 1  # it went on to look for a Python


def test_the_checks_run_with_the_environments_python():
    dry = subprocess.run(
        ["make", "--dry-run", "check"], cwd=ROOT, check=True, capture_output=True, text=True
    )
    tools = re.findall(r"(\S*) -m (\w+)", dry.stdout)
    assert tools == [(".venv/bin/python", name) for name in ("ruff", "ruff", "mypy")]


def test_the_lock_is_complete_and_exact():
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    pins = {line.split("==")[0].split("[")[0].lower() for line in lines if "==" in line}
    assert all("==" in line for line in lines if line and line[0] not in " #")
    asked = (ROOT / "requirements.in").read_text().splitlines()
    for line in asked:
        name = line.split("#")[0].strip().lower()
        for stop in "=<>[":
            name = name.split(stop)[0]
        assert not name or name in pins, f"{name} is not in requirements.txt: run `make lock`"
