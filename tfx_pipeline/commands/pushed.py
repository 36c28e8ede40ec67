"""Finds what a run left for serving, without ML Metadata."""

from __future__ import annotations

import pathlib

from absl import flags

from tfx_pipeline.layout import Layout


def model(layout: Layout, name: str = "") -> pathlib.Path:
    """Folder of a model's pushed versions. Raises `flags.Error` if there isn't one such model."""
    models = sorted(p for p in layout.serving.glob(name or "*") if any(p.glob("[0-9]*")))
    if len(models) == 1:
        return models[0]
    if models:
        names = ", ".join(path.name for path in models)
        raise flags.Error(f"{layout.serving} holds several models; give --model, one of: {names}")
    pushed = sorted(p.name for p in layout.serving.glob("*") if any(p.glob("[0-9]*")))
    if pushed:
        raise flags.Error(f"--model={name}: {layout.serving} has: {', '.join(pushed)}")
    output = f"--output={layout.output}"
    advice = f"`run {output}` first, or see by `report {output}` why it wasn't blessed"
    raise flags.Error(f"{layout.serving}: no pushed model; {advice}")


def version(layout: Layout, name: str = "", number: str = "") -> pathlib.Path:
    """Folder of one version, the newest unless given. Raises `flags.Error` if there is none."""
    versions = {path.name: path for path in model(layout, name).glob("[0-9]*")}
    if number and number not in versions:
        raise flags.Error(f"--version={number}: there are: {', '.join(sorted(versions, key=int))}")
    return versions[number or max(versions, key=int)]


def examples(layout: Layout, split: str = "*") -> list[str]:
    """Files of the newest raw instances. Raises `flags.Error` if there are none."""
    folders = (layout.artifacts / "SequenceExampleGen" / "examples").glob("[0-9]*")
    newest = max(folders, key=lambda folder: int(folder.name), default=None)
    files = sorted(newest.glob(f"Split-{split}/*.gz")) if newest else []
    if not files:
        raise flags.Error(f"{layout.artifacts}: no instances; `run --output={layout.output}` first")
    return [str(file) for file in files]
