"""Imports go one way (DESIGN §3): data <- modules <- tfx_pipeline; serving stands alone."""

import json
import pathlib
import subprocess
import sys

import pytest

from tests.repo.source_tree import ROOT, file_of, our_imports, python_files

ALLOWED = {
    "data": {"data"},
    "modules": {"data", "modules"},
    "serving": {"serving"},
    "tfx_pipeline": {"data", "modules", "serving", "tfx_pipeline"},
}
# The pipeline may call the server and its client from outside, never their insides.
SERVING_SURFACE = tuple(
    f"serving.{name}" for name in ("client", "errors", "knowledge", "local", "protos")
)


@pytest.mark.parametrize("package", ALLOWED)
def test_imports_go_one_way(package):
    wrong = {
        f"{file} imports {name}"
        for file in python_files(package)
        for name in our_imports(file)
        if name.split(".")[0] not in ALLOWED[package]
    }
    assert not wrong


def test_the_spec_imports_nothing_of_ours_but_its_parts():
    names = ("spec", "spec_rules", "channels", "architectures", "strict")
    parts = {pathlib.Path("data", f"{name}.py") for name in names}
    for file in parts:
        assert {file_of(name) for name in our_imports(file)} <= parts, file


def test_the_pipeline_uses_only_the_surface_of_serving():
    wrong = {
        f"{file} imports {name}"
        for file in python_files("tfx_pipeline")
        for name in our_imports(file)
        if name.startswith("serving.") and not name.startswith(SERVING_SURFACE)
    }
    assert not wrong


@pytest.mark.parametrize(
    ("module", "forbidden"),
    [
        ("serving.client", {"tensorflow", "tfx", "apache_beam", "data", "modules"}),
        ("serving.server.__main__", {"tensorflow", "tfx", "apache_beam", "data", "modules"}),
        ("serving.knowledge.server", {"tensorflow", "pyarrow", "redis", "data", "modules"}),
        ("data.spec", {"tensorflow", "tfx", "apache_beam", "pandas"}),
        ("tfx_pipeline.__main__", {"tensorflow", "tfx", "apache_beam"}),
    ],
)
def test_light_modules_stay_light(module, forbidden):
    code = (
        f"import importlib, json, sys; importlib.import_module({module!r});"
        "print(json.dumps([name.split('.')[0] for name in sys.modules]))"
    )
    printed = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout
    assert not forbidden & set(json.loads(printed))
