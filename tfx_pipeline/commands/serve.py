"""Serves a run's pushed model over gRPC and REST, and every newer version that is pushed.

Becomes `python -m serving.server`; what follows `--` are flags of its own.
"""

from __future__ import annotations

from absl import flags

from tfx_pipeline.commands import pushed
from tfx_pipeline.layout import output_of

BECOMES = "serving.server"

FLAGS = flags.FlagValues()
flags.DEFINE_string("output", "runs/simulator", "The run's folder.", flag_values=FLAGS)
flags.DEFINE_string("model", "", "Its model, where there are several.", flag_values=FLAGS)
flags.DEFINE_integer("port", 8500, "gRPC port.", flag_values=FLAGS)
flags.DEFINE_integer("rest_api_port", 0, "REST port; 0: none.", flag_values=FLAGS)


def arguments(values: flags.FlagValues) -> list[str]:
    """The server's."""
    model = pushed.model(output_of(values.output), values.model)
    return [
        f"--model_base_path={model}",
        f"--model_name={model.name}",
        f"--port={values.port}",
        f"--rest_api_port={values.rest_api_port}",
    ]
