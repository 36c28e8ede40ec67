"""Writes users' embeddings by a pushed model to Parquet, for the users of the run or any instances.

A run does so for its own users; this is for another version, or for instances that
`python -m data.ingestion` made from other events.
"""

from __future__ import annotations

import pathlib
import tempfile

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
    "examples", "", "Glob of TFRecords of instances; the run's own unless given.", flag_values=FLAGS
)
flags.DEFINE_string(
    "to", "", "Folder that gets <version>/ (default: the run's embeddings).", flag_values=FLAGS
)


def main(values: flags.FlagValues) -> int:
    """Embeds, and says where."""
    layout = output_of(values.output)
    model = pushed.version(layout, values.model, values.version)
    patterns = [values.examples] if values.examples else pushed.examples(layout)
    target = pathlib.Path(values.to).expanduser() if values.to else layout.embeddings
    layout.prepare()
    with quiet.redirected(layout.log) as console:
        with NodeLines(console) as lines, tempfile.TemporaryDirectory() as folder:
            lines.start("Imports")
            import apache_beam as beam

            from tfx_pipeline.components import user_embeddings

            lines.start("UserEmbeddings")
            with beam.Pipeline() as pipeline:
                user_embeddings.embed_instances(pipeline, patterns, str(model), model.name, folder)
            target.mkdir(parents=True, exist_ok=True)
            rows = user_embeddings.publish(folder, target, model.name)
        console.print(f"{rows:,} users in {shown(target.absolute() / model.name)}")
    return 0
