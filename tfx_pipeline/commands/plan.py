"""What a spec costs on a cluster: parameters, memory, network, checkpoints, and time if asked.

No data is needed: vocabularies that Transform will learn are taken at their bound (top_k), or from
--transform_output. Nothing of the model is put into memory, so any size can be asked for. What
doesn't fit is said, not refused. docs/planning.md says what is counted and what is measured.
"""

from __future__ import annotations

import json
import re
import sys
from typing import TYPE_CHECKING

from absl import flags

from data.spec import load_spec
from modules.training.cluster.config import ROLES, Cluster, ClusterError, Role, load_cluster

if TYPE_CHECKING:
    from data.spec import Spec
    from modules.training.planning.rows import TableRows
    from modules.training.planning.size import BatchSize

FLAGS = flags.FlagValues()
flags.DEFINE_string("spec", "simulator", "Spec: a YAML, or a bundled name.", flag_values=FLAGS)
flags.DEFINE_string(
    "cluster", "", "The cluster's YAML; one process unless given.", flag_values=FLAGS
)
flags.DEFINE_enum(
    "phase", "finetune", ["pretrain", "finetune"], "Phase of training.", flag_values=FLAGS
)
flags.DEFINE_list("rows", [], "table=n: rows of tables, instead of a bound.", flag_values=FLAGS)
flags.DEFINE_string("transform_output", "", "Transform's graph: true rows.", flag_values=FLAGS)
flags.DEFINE_integer("batch", None, "Instances a step.", 1, flag_values=FLAGS)
flags.DEFINE_integer("events", None, "Of an instance (default: the window).", 1, flag_values=FLAGS)
flags.DEFINE_integer("targets", None, "Of an instance (default: 16).", 1, flag_values=FLAGS)
flags.DEFINE_boolean("calibrate", False, "Time real steps on this machine.", flag_values=FLAGS)
flags.DEFINE_string("memory", "", "A process' limit, as 24GiB: recommends.", flag_values=FLAGS)
flags.DEFINE_float("network", 10.0, "Gbit/s of a machine.", 0.001, flag_values=FLAGS)
flags.DEFINE_boolean("json", False, "Print JSON.", flag_values=FLAGS)

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_UNITS |= {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


def main(values: flags.FlagValues) -> int:
    """Plans and prints. 0 also where something doesn't fit."""
    spec = load_spec(values.spec)
    try:
        cluster = load_cluster(values.cluster or None)
    except ClusterError as error:
        raise flags.Error(f"--cluster: {error}") from None
    limit = size_in_bytes(values.memory) if values.memory else None
    given = _given_rows(values.rows)
    print("counting, and starting processes to measure (about a minute) …", file=sys.stderr)
    # Imported only now: TensorFlow.
    from modules.training.planning.plan import make_plan
    from modules.training.planning.speed import speed
    from tfx_pipeline.report.plan import print_plan

    try:
        rows = _rows(spec, given, values.transform_output)
        plan = make_plan(
            spec,
            values.phase,
            rows,
            cluster,
            _size(spec, values),
            calibrate=values.calibrate,
            limit=limit,
        )
    except (ValueError, MemoryError) as error:
        raise flags.Error(str(error)) from None
    timed = plan.calibration and speed(
        cluster, plan.traffic, plan.calibration.step_seconds, values.network * 1e9 / 8
    )
    if values.json:
        print(json.dumps(plan.as_json() | {"speed": timed and timed._asdict()}, indent=1))
    else:
        print_plan(plan, spec, timed, _limits(cluster, limit))
    return 0


def size_in_bytes(text: str) -> int:
    """`24GiB`, `24Gi` or `24e9`-like plain bytes. Raises flags.Error."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]i?)?B?", text)
    if not match:
        raise flags.Error(f"--memory={text}: a size such as 24GiB")
    return int(float(match[1]) * _UNITS[match[2] or ""])


def _given_rows(texts: list[str]) -> dict[str, int]:
    given = {}
    for text in texts:
        match = re.fullmatch(r"(\w+)=([\d_]+)", text)
        if not match:
            raise flags.Error(f"--rows={text}: table=number, as product=1_000_000")
        given[match[1]] = int(match[2])
    return given


def _rows(spec: Spec, given: dict[str, int], transform_output: str) -> dict[str, TableRows]:
    from modules.training.planning.rows import rows_of

    return rows_of(spec, given, transform_output or None)


def _size(spec: Spec, values: flags.FlagValues) -> BatchSize:
    from modules.training.planning.plan import default_size
    from modules.training.planning.size import BatchSize

    usual = default_size(spec, values.phase)
    return BatchSize(
        values.batch or usual.instances,
        values.events or usual.events,
        values.targets or usual.targets,
    )


def _limits(cluster: Cluster, limit: int | None) -> dict[Role, int]:
    """What each role may have: as asked, or as its pod does."""
    if limit is not None:
        return dict.fromkeys(ROLES, limit)
    pods = cluster.kubernetes
    if pods is None:
        return {}
    return {role: size_in_bytes(getattr(pods, role).memory) for role in ROLES}
