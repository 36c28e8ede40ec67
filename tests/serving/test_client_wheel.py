"""The client as another team has it: its wheel, in an environment without TensorFlow."""

import json
import pathlib
import re
import shutil
import subprocess
import sys
import zipfile

import pytest

from tests.repo.source_tree import ROOT

MAX_MIB = 80

_USE = """
import importlib.util, json, re, sys
from serving.client import Client, example
with Client(sys.argv[1]) as client:
    user = {"user_id": "u1", "sequence_item": [100, 200], "candidate_price": [0.5]}
    answer = client.predict("users", {"examples": [example(user)]})
print(json.dumps({
    "click": answer["click"].tolist(),
    # Not getrusage's: that starts at what the parent had.
    "mib": int(re.search(r"VmHWM:\\s*(\\d+) kB", open("/proc/self/status").read())[1]) / 1024,
    "tensorflow": importlib.util.find_spec("tensorflow") is not None,
    "imported_from": sys.modules["serving"].__file__,
}))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> pathlib.Path:
    """Built from a copy: setuptools leaves its workings beside what it builds."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("serving", "packaging/client"):
        shutil.copytree(ROOT / name, folder / name)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"]
    command += ["--no-build-isolation", "--wheel-dir", folder / "out", folder / "packaging/client"]
    subprocess.run(command, check=True)
    (built,) = (folder / "out").iterdir()
    return built


@pytest.mark.slow
def test_holds_the_client_and_nothing_else(wheel):
    assert wheel.name.startswith("universal_user_client-") and wheel.name.endswith("-any.whl")
    names = zipfile.ZipFile(wheel).namelist()
    ours = {name for name in names if ".dist-info/" not in name}
    assert ours == {
        str(path.relative_to(ROOT))
        for pattern in (
            "client/*.py",
            "protos/*.p[yb]",
            "__init__.py",
            "errors.py",
            "tensors.py",
            "tfrecord.py",
        )
        for path in (ROOT / "serving").glob(pattern)
    }


@pytest.mark.slow
def test_runs_without_tensorflow(wheel, tmp_path, server):
    environment = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    python = environment / "bin/python"
    lock = (ROOT / "requirements.txt").read_text()
    pins = re.findall(r"^(?:numpy|protobuf|grpcio)==\S+", lock, re.MULTILINE)
    assert len(pins) == 3
    pip = [sys.executable, "-m", "pip", "--python", python]
    subprocess.run([*pip, "install", "--quiet", wheel, *pins], check=True)
    used = subprocess.run(
        [python, "-I", "-c", _USE, server.target], cwd=tmp_path, capture_output=True, text=True
    )
    assert used.returncode == 0, used.stderr
    told = json.loads(used.stdout)
    assert told["imported_from"].startswith(str(environment))
    assert told["tensorflow"] is False
    assert told["click"][0][0] == pytest.approx(0.6899745)
    assert told["mib"] <= MAX_MIB
    script = [environment / "bin/universal-user-client", "--help"]
    assert "--root_certificates" in subprocess.run(script, capture_output=True, text=True).stdout
