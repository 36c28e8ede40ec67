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
    raise flags.Error(f"{layout.serving}: no pushed model; `run --output={layout.output}` first")


def eval_examples(layout: Layout) -> list[pathlib.Path]:
    """Files of the newest raw eval instances. Raises `flags.Error` if there are none."""
    versions = (layout.artifacts / "SequenceExampleGen" / "examples").glob("*/Split-eval")
    newest = max(versions, key=lambda path: int(path.parent.name), default=None)
    files = sorted(newest.glob("*.gz")) if newest else []
    if not files:
        raise flags.Error(f"{layout.artifacts}: no instances; `run --output={layout.output}` first")
    return files
