"""Style and types, so that `make test` is all a change has to pass."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.repo.source_tree import ROOT

CHECKS = {
    "lint": ("ruff", "check", "."),
    "format": ("ruff", "format", "--check", "."),
    "types": ("mypy",),
}


@pytest.mark.parametrize("name", CHECKS)
def test_is_clean(name):
    command = [sys.executable, "-m", *CHECKS[name]]
    checked = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr
