"""Trains, evaluates and pushes a model: the whole pipeline, from events to a served model.

The same command again goes on from the first node that isn't finished, or whose data, spec or
code changed. Without --data, the simulator's spec simulates its users first.

With a cluster that has 'kubernetes', a Trainer ends the run with the TFJob to apply; once that has
succeeded, the same command again goes on.

Exit code: 0 pushed, 1 failed or not blessed, 2 asked for wrongly, or another run writes there.
"""

from __future__ import annotations

import logging
import os
import pathlib

from absl import flags

from data.spec import Spec, load_spec
from modules.training.cluster.config import Cluster, ClusterError, load_cluster
from modules.training.cluster.possible import require_possible
from modules.training.cluster.tfjob import require_in_volume
from tfx_pipeline import quiet
from tfx_pipeline.commands import report, simulate
from tfx_pipeline.commands.report import shown
from tfx_pipeline.layout import Layout, output_of
from tfx_pipeline.progress import LOGGER, NodeLines

FLAGS = flags.FlagValues()
_SIMULATOR = "simulator"
flags.DEFINE_string(
    "spec", _SIMULATOR, "YAML file, or name of one in data/specs.", flag_values=FLAGS
)
flags.DEFINE_string("data", "", "Folder the spec's source paths start at.", flag_values=FLAGS)
flags.DEFINE_string(
    "cluster",
    "",
    "YAML of the cluster to train in (deploy/clusters); default: one process.",
    flag_values=FLAGS,
)
flags.DEFINE_string("output", "", "Folder of the run (default: runs/<spec>).", flag_values=FLAGS)
simulate.define_flags(FLAGS)


def main(values: flags.FlagValues) -> int:
    """Runs the pipeline and says what came of it."""
    spec = simulate.spec_of(values) if values.spec == _SIMULATOR else load_spec(values.spec)
    given = [name for name in simulate.SIMULATOR_FLAGS if values[name].present]
    if given and values.spec != _SIMULATOR:
        raise flags.Error(f"--{given[0]}: only goes with --spec={_SIMULATOR}, which makes its data")
    if not values.data and values.spec != _SIMULATOR:
        raise flags.Error(f"--data: give the folder that the events of {values.spec} are in")
    if values.data and not pathlib.Path(values.data).is_dir():
        raise flags.Error(f"--data={values.data}: no such folder")
    if values.data:
        _check_input(spec, values.data)
    layout = output_of(values.output or f"runs/{spec.name}")
    layout.require_for(spec.name, values.data)
    cluster = _cluster_of(values.cluster, spec, layout)
    layout.prepare()
    with layout.claimed(), quiet.redirected(layout.log) as console:
        layout.require_for(spec.name, values.data)  # Another's may have begun since.
        layout.spec.write_text(spec.model_dump_json(indent=2, exclude_unset=True) + "\n")
        console.print(f"{spec.name}: {shown(layout.output)} (log: {shown(layout.log)})")
        with NodeLines(console) as lines:
            data_root = values.data or _simulate(values, layout, lines)
            _run_pipeline(spec, os.path.abspath(data_root), layout, cluster, lines)
        return report.conclude(spec, layout, console)


def _check_input(spec: Spec, data_root: str) -> None:
    """A missing file or column is told at once, not after TFX's imports."""
    from data import sources
    from data.columns import SourceError

    try:
        sources.find(spec, data_root)
    except SourceError as error:
        raise flags.Error(str(error)) from None


def _simulate(values: flags.FlagValues, layout: Layout, lines: NodeLines) -> str:
    lines.start("Simulator")
    progress = logging.getLogger(LOGGER)

    def tell(done: int, users: int) -> None:
        progress.info("%d of %d users", done, users, extra={"fraction": done / users})

    return str(simulate.simulate(values, layout.data, tell))


def _cluster_of(path: str, spec: Spec, layout: Layout) -> Cluster:
    try:
        cluster = load_cluster(path or None)
        require_possible(cluster, spec)
        if cluster.kubernetes is not None:
            require_in_volume(cluster.kubernetes, str(layout.training))
    except ClusterError as error:
        raise flags.Error(f"--cluster: {error}") from None
    if cluster.addresses is not None:
        raise flags.Error(
            f"--cluster={path}: its processes are elsewhere; a run here starts its own"
            " ('processes: {worker: 2, ps: 2}')"
        )
    return cluster


def _run_pipeline(
    spec: Spec, data_root: str, layout: Layout, cluster: Cluster, lines: NodeLines
) -> None:
    lines.start("Imports")
    from tfx.orchestration.local.local_dag_runner import LocalDagRunner

    from tfx_pipeline.pipeline import create_pipeline

    pipeline = create_pipeline(spec, data_root, layout, cluster)
    LocalDagRunner().run(pipeline)
