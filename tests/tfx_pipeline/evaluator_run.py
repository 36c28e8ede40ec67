"""Runs the stock TFX Evaluator by itself over files, as the pipeline's node does."""

from __future__ import annotations

import json
import pathlib

from tfx.components.evaluator.component import Evaluator
from tfx.dsl.components.common.importer import Importer
from tfx.dsl.components.common.resolver import Resolver
from tfx.dsl.input_resolution.strategies.latest_blessed_model_strategy import (
    LatestBlessedModelStrategy,
)
from tfx.orchestration import metadata
from tfx.orchestration.local.local_dag_runner import LocalDagRunner
from tfx.orchestration.pipeline import Pipeline
from tfx.types.channel import Channel
from tfx.types.standard_artifacts import Examples, Model, ModelBlessing

from data.spec import Spec
from modules.metrics.eval_config import eval_config


def run_evaluator(
    root: pathlib.Path, examples: pathlib.Path, model: pathlib.Path, spec: Spec
) -> tuple[pathlib.Path, bool]:
    """One run under `root`, whose earlier runs' latest blessed model is the baseline.

    Returns:
      The evaluation's folder, and whether the model was blessed.
    """
    importer = Importer(
        str(examples),
        Examples,
        properties={"split_names": json.dumps(["eval"])},
        custom_properties={"file_format": "tfrecords_gzip", "payload_format": "FORMAT_TF_EXAMPLE"},
    ).with_id("examples")
    candidate = Importer(str(model), Model).with_id("model")
    blessed = Resolver(
        strategy_class=LatestBlessedModelStrategy,
        model=Channel(type=Model),
        model_blessing=Channel(type=ModelBlessing),
    ).with_id("blessed")
    evaluator = Evaluator(
        examples=importer.outputs["result"],
        model=candidate.outputs["result"],
        baseline_model=blessed.outputs["model"],
        eval_config=eval_config(spec),
        module_path="tfx_pipeline.evaluation",
    )
    LocalDagRunner().run(
        Pipeline(
            pipeline_name="evaluate",
            pipeline_root=str(root / "artifacts"),
            components=[importer, candidate, blessed, evaluator],
            metadata_connection_config=metadata.sqlite_metadata_connection_config(
                str(root / "metadata.sqlite")
            ),
            beam_pipeline_args=["--direct_num_workers=1", "--direct_running_mode=in_memory"],
        )
    )
    evaluation = _newest(root / "artifacts" / "Evaluator" / "evaluation")
    blessing = _newest(root / "artifacts" / "Evaluator" / "blessing")
    return evaluation, (blessing / "BLESSED").exists()


def _newest(folder: pathlib.Path) -> pathlib.Path:
    return max(folder.iterdir(), key=lambda path: int(path.name))
