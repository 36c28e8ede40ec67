"""Where figures come from: which code, on which machine, when."""

from __future__ import annotations

import datetime
import os
import pathlib
import subprocess

import psutil

from tfx_pipeline.fingerprint import ROOT


def provenance() -> dict[str, str]:
    """`commit` (with whether the tree had changes), `machine`, `date`."""
    now = datetime.datetime.now(datetime.timezone.utc)
    return {"commit": _commit(), "machine": _machine(), "date": f"{now:%Y-%m-%d %H:%M} UTC"}


def _commit() -> str:
    try:
        commit = _git("rev-parse", "--short=12", "HEAD")
        dirty = _git("status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError):
        return "unknown (no git repository)"
    return f"{commit} with uncommitted changes" if dirty else commit


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(ROOT), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def _machine() -> str:
    cores = len(os.sched_getaffinity(0))
    memory = psutil.virtual_memory().total / 2**30
    return f"{cores} cores of {_processor()}, {memory:.1f} GiB"


def _processor() -> str:
    path = pathlib.Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else "an unknown processor"
