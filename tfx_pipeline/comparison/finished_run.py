"""What a comparison reads of a finished run: its spec, its instances and Transform's output."""

from __future__ import annotations

import dataclasses
import json
import pathlib

from absl import flags

from data.spec import Spec, parse_spec
from tfx_pipeline.layout import Layout


@dataclasses.dataclass(frozen=True)
class FinishedRun:
    """Args:
    spec: what the run was asked for.
    instances: folder of `Split-*`, raw instances.
    transformed: folder of `Split-*`, Transform's.
    transform_graph: Transform's output.
    """

    spec: Spec
    instances: pathlib.Path
    transformed: pathlib.Path
    transform_graph: pathlib.Path


def finished_run(layout: Layout) -> FinishedRun:
    """Raises `flags.Error` if there is no run, or it hasn't come so far."""
    if not layout.spec.exists():
        raise _none(layout, "no run here")
    return FinishedRun(
        parse_spec(json.loads(layout.spec.read_text()), str(layout.spec)),
        _newest(layout, "SequenceExampleGen/examples"),
        _newest(layout, "Transform/transformed_examples"),
        _newest(layout, "Transform/transform_graph"),
    )


def _newest(layout: Layout, artifact: str) -> pathlib.Path:
    folders = (layout.artifacts / artifact).glob("[0-9]*")
    found = max(folders, key=lambda path: int(path.name), default=None)
    if found is None:
        raise _none(layout, f"its run has no {artifact} yet")
    return found


def _none(layout: Layout, reason: str) -> flags.Error:
    command = f"python -m tfx_pipeline run --output={layout.output}"
    return flags.Error(f"--run={layout.output}: {reason}; `{command}` makes one (of the simulator)")
