"""Prints a run's metrics and writes its report again.

Exit code: 0 pushed, 1 not blessed, 2 asked for wrongly.
"""

from __future__ import annotations

import json
import pathlib
import sys

import rich.console
from absl import flags

from data.spec import Spec, parse_spec
from tfx_pipeline import quiet
from tfx_pipeline.layout import Layout, output_of

FLAGS = flags.FlagValues()
flags.DEFINE_string("output", "runs/simulator", "The run's folder.", flag_values=FLAGS)


def main(values: flags.FlagValues) -> int:
    """Concludes a run that is there already."""
    layout = output_of(values.output)
    if not layout.spec.exists():
        raise flags.Error(f"--output={values.output}: no run here; `run --output` makes one")
    spec = parse_spec(json.loads(layout.spec.read_text()), str(layout.spec))
    layout.prepare()
    with quiet.redirected(layout.log) as console:
        return conclude(spec, layout, console)


def conclude(spec: Spec, layout: Layout, console: rich.console.Console) -> int:
    """Writes the report and prints what came of a run. Returns the exit code.

    Raises:
      NoRunError: the run has not got to its end.
    """
    from modules.metrics.results import load_metrics
    from modules.training.incidents import read_incidents
    from tfx_pipeline.artifacts import Artifacts
    from tfx_pipeline.report.console import ingestion_line, metrics_table
    from tfx_pipeline.report.history import read_history
    from tfx_pipeline.report.page import write_report

    artifacts = Artifacts(layout.metadata)
    evaluation = load_metrics(artifacts.newest("Evaluator", "evaluation").uri)
    examples = artifacts.newest("SequenceExampleGen", "examples")
    ingestion = json.loads(examples.custom_properties["summary"].string_value)
    phases = ["Pretrain", "Finetune"] if spec.training.pretrain.epochs else ["Finetune"]
    runs = [artifacts.newest(phase, "model_run") for phase in phases]
    histories = [read_history(pathlib.Path(run.uri)) for run in runs]
    write_report(
        layout.report,
        spec,
        evaluation,
        ingestion=ingestion,
        nodes=artifacts.node_times(),
        histories=[history for history in histories if history],
        incidents={
            phase: read_incidents(pathlib.Path(run.uri))
            for phase, run in zip(phases, runs, strict=True)
        },
    )
    console.print(ingestion_line(ingestion))
    if ingestion["dead_letters"]:
        console.print(f"Malformed: {shown(layout.dead_letters)}")
    console.print(metrics_table(evaluation, spec))
    console.print(f"Report:    {shown(layout.report)}")
    if not evaluation.blessed:
        console.print("[red]Not blessed[/], so nothing is pushed:")
        for failure in evaluation.failures:
            console.print(f"  {failure}", markup=False)
        return 1
    python = shown(pathlib.Path(sys.executable))
    console.print(f"Pushed:    {shown(layout.serving / spec.name)}")
    console.print(f"Serve it:  {python} -m tfx_pipeline serve --output={shown(layout.output)}")
    console.print(
        f"Ask it:    {python} -m tfx_pipeline predict --output={shown(layout.output)} -- --wait=60"
    )
    return 0


def shown(path: pathlib.Path) -> pathlib.Path:
    """Relative to the working folder where it is below it: shorter to read and to copy."""
    here = pathlib.Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path
