"""SpecSchema: writes the schema that follows from the spec, where SchemaGen would guess one."""

import json

from tfx.dsl.component.experimental.annotations import OutputArtifact, Parameter
from tfx.dsl.component.experimental.decorators import component
from tfx.types.standard_artifacts import Schema
from tfx.utils import io_utils

from data.schema import schema_text
from data.spec import parse_spec

FILE = "schema.pbtxt"


@component
def SpecSchema(
    schema: OutputArtifact[Schema], spec: Parameter[str], code: Parameter[str] = ""
) -> None:
    """Writes `schema.pbtxt`.

    Args:
      schema: where to.
      spec: the spec as JSON.
      code: hash of what runs here; TFX's cache looks at parameters, not at code.
    """
    text = schema_text(parse_spec(json.loads(spec)))
    io_utils.write_string_file(f"{schema.uri}/{FILE}", text)
