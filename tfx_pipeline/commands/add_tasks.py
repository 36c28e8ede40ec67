"""Trains tasks on a run's pushed model, which stays as it is; a server answers them when it looks.

The model has to be run with `model.added_tasks: true`. A task is a file beside its versions,
`serving/<model>/tasks/<backbone>/<task>.npz`.
"""

from __future__ import annotations

import json
import pathlib
import tempfile

import rich.table
from absl import flags

from tfx_pipeline import quiet
from tfx_pipeline.commands import pushed
from tfx_pipeline.commands.report import shown
from tfx_pipeline.layout import output_of
from tfx_pipeline.progress import NodeLines

FLAGS = flags.FlagValues()
flags.DEFINE_string("output", "runs/simulator", "The run's folder.", flag_values=FLAGS)
flags.DEFINE_string("tasks", "", "YAML file of the tasks (docs/tuning.md).", flag_values=FLAGS)
flags.DEFINE_string(
    "data", "", "Folder the spec's source paths start at, as of the run.", flag_values=FLAGS
)
flags.DEFINE_string("model", "", "Its model, where there are several.", flag_values=FLAGS)
flags.DEFINE_string(
    "version", "", "The model's version; the newest unless given.", flag_values=FLAGS
)


def main(values: flags.FlagValues) -> int:
    """Adds the tasks, and says how good they are."""
    from data.added_tasks import load_added_tasks, with_added
    from data.spec import parse_spec

    if not values.tasks:
        raise flags.Error("--tasks: give the YAML file of the tasks to add")
    layout = output_of(values.output)
    version = pushed.version(layout, values.model, values.version)
    wanted = load_added_tasks(values.tasks)
    spec = with_added(parse_spec(json.loads(layout.spec.read_text())), wanted)
    data_root = values.data or str(layout.data)
    layout.prepare()
    table = rich.table.Table("task", "AUC", "GAUC", "RMSE", "eval targets", "parameters", "share")
    with quiet.redirected(layout.log) as console:
        with NodeLines(console) as lines, tempfile.TemporaryDirectory(dir=layout.output) as folder:
            lines.start("Imports")
            from data.columns import SourceError
            from data.ingestion import IngestionError
            from modules.training.added_tasks import AddedTaskError
            from tfx_pipeline import task_addition

            try:
                lines.start("Instances")
                files = task_addition.instances(spec, data_root, pathlib.Path(folder))
                lines.start("AddTasks")
                target = version.parent / "tasks"
                for added in task_addition.add(str(version), files, wanted, target):
                    table.add_row(*_figures(added))
            except (SourceError, IngestionError, AddedTaskError) as error:
                raise flags.Error(str(error)) from None
        console.print(table)
        console.print(f"{len(wanted.tasks)} tasks in {shown(target / added['backbone'])}")
    return 0


def _figures(about: dict) -> list[str]:
    metrics = about["eval"]
    measured = [f"{metrics[key]:.4f}" if key in metrics else "-" for key in ("auc", "gauc", "rmse")]
    return [
        about["name"],
        *measured,
        f"{metrics['targets']:,.0f}",
        f"{about['tuned_parameters']:,}",
        f"{about['tuned_share']:.2%}",
    ]
