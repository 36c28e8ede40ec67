"""SequenceExampleGen: behaviour events -> instances, one per user window.

An ExampleGen of our own, as TFX's make one record of one row, and split by record. Reading,
casting, windows and splits are `data/ingestion.py`'s; here is what TFX wants around it.
"""

# No `from __future__ import annotations`: TFX reads this module's annotations as objects.

import json

import apache_beam as beam
from tfx.dsl.component.experimental.annotations import (
    BeamComponentParameter,
    OutputArtifact,
    Parameter,
)
from tfx.dsl.component.experimental.decorators import component
from tfx.types import artifact_utils
from tfx.types.standard_artifacts import Examples

from data import ingestion
from data.spec import parse_spec


@component(use_beam=True)
def SequenceExampleGen(
    examples: OutputArtifact[Examples],
    spec: Parameter[str],
    data_root: Parameter[str],
    dead_letter_dir: Parameter[str],
    input_fingerprint: Parameter[str],
    beam_pipeline: BeamComponentParameter[beam.Pipeline] = None,
) -> None:
    """Writes the splits `train` and `eval` as gzipped TFRecords of `tf.Example`.

    `ingestion.json` beside them holds the run's counts; the artifact's custom properties
    repeat it, and with it the split rule.

    Args:
      examples: where to.
      spec: the spec as JSON.
      data_root: folder that the spec's relative paths start from.
      dead_letter_dir: folder for `ingestion.jsonl`, one malformed row a line.
      input_fingerprint: `sources.fingerprint` of the input: makes TFX's cache notice new data.

    Raises:
      SourceError: input that can't be used as a whole: names the file and the fix.
      IngestionError: too many malformed rows, an empty split, or an unwritable folder.
    """
    parsed = parse_spec(json.loads(spec))
    examples.split_names = artifact_utils.encode_split_names(list(ingestion.SPLITS))
    summary = ingestion.ingest(
        beam_pipeline,
        parsed,
        data_root,
        {split: artifact_utils.get_split_uri([examples], split) for split in ingestion.SPLITS},
        examples.uri,
        dead_letter_dir,
    )
    examples.set_string_custom_property("input_fingerprint", input_fingerprint)
    examples.set_string_custom_property("split", json.dumps(summary["split"]))
    examples.set_string_custom_property("summary", json.dumps(summary))
