"""Writes what a pushed model knows of users, items or users' categories, as vectors (KEEP).

A spec's `knowledge` says what an item is. The folder can be plugged into another model by
`knowledge.path`, and published by `python -m serving.knowledge publish`.
"""

from __future__ import annotations

import json
import pathlib

from absl import flags

from tfx_pipeline import quiet
from tfx_pipeline.commands import pushed
from tfx_pipeline.commands.report import shown
from tfx_pipeline.layout import output_of
from tfx_pipeline.progress import NodeLines

FLAGS = flags.FlagValues()
flags.DEFINE_string("output", "runs/simulator", "The run's folder.", flag_values=FLAGS)
flags.DEFINE_string("model", "", "Its model, where there are several.", flag_values=FLAGS)
flags.DEFINE_string(
    "version", "", "The model's version; the newest unless given.", flag_values=FLAGS
)
flags.DEFINE_string(
    "to", "", "Folder of the files (default: the run's extracted/<version>).", flag_values=FLAGS
)


def main(values: flags.FlagValues) -> int:
    """Extracts, and says where to."""
    layout = output_of(values.output)
    model = pushed.version(layout, values.model, values.version)
    files = pushed.examples(layout)
    target = pathlib.Path(values.to or layout.output / "extracted" / model.name).expanduser()
    layout.prepare()
    with quiet.redirected(layout.log) as console:
        with NodeLines(console) as lines:
            lines.start("Imports")
            from data.spec import parse_spec
            from tfx_pipeline import extraction

            lines.start("Extract")
            spec = parse_spec(json.loads(layout.spec.read_text()))
            try:
                rows = extraction.extract(str(model), files, spec, target)
            except ValueError as error:
                raise flags.Error(str(error)) from None
        counts = ", ".join(f"{count:,} {kind} vectors" for kind, count in rows.items())
        console.print(f"{counts} in {shown(target.absolute())}")
    return 0
