"""Asks a running server about users of the run's eval split and prints the answers as JSON lines.

Becomes `python -m serving.client`, which takes your own instances too; what follows `--` are flags
of its own, such as --wait=60 or --root_certificates=ca.pem (TLS).
"""

from __future__ import annotations

from absl import flags

from tfx_pipeline.commands import pushed
from tfx_pipeline.layout import output_of

BECOMES = "serving.client"

FLAGS = flags.FlagValues()
flags.DEFINE_string("output", "runs/simulator", "The run's folder.", flag_values=FLAGS)
flags.DEFINE_string("model", "", "Its model, where there are several.", flag_values=FLAGS)
flags.DEFINE_string("server", "localhost:8500", "host:port of the server.", flag_values=FLAGS)
flags.DEFINE_string("signature", "serving_default", "Or `embed`.", flag_values=FLAGS)
flags.DEFINE_integer("limit", 3, "How many users.", lower_bound=1, flag_values=FLAGS)


def arguments(values: flags.FlagValues) -> list[str]:
    """The client's."""
    layout = output_of(values.output)
    model, examples = pushed.model(layout, values.model), pushed.examples(layout, "eval")
    return [
        f"--target={values.server}",
        f"--model={model.name}",
        f"--signature={values.signature}",
        f"--examples={examples[0]}",
        f"--limit={values.limit}",
    ]
