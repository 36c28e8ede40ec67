"""A task's metrics in one slice, beside what they are compared with."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

from data.spec import Spec, Task
from modules.metrics.results import BASELINE, OVERALL, Evaluation
from modules.metrics.tfma_metrics import ORACLE_PREFIX

MISSING = "–"


@dataclasses.dataclass(frozen=True)
class Compared:
    """One metric; what isn't known is NaN."""

    value: float
    oracle: float
    gap_closed: float
    """Share of the way from 0.5 to the oracle."""
    last_blessed: float

    @property
    def change(self) -> float:
        """Against the last blessed model."""
        return self.value - self.last_blessed


@dataclasses.dataclass(frozen=True)
class TaskSummary:
    """A task in a slice of the evaluation targets."""

    task: Task
    count: float
    """Labelled targets."""
    positives: float
    """Share of positive labels (binary)."""
    auc: Compared
    gauc: Compared
    gauc_share: float
    """Share of the targets whose user has both classes, and so counts in GAUC."""
    others: dict[str, float]
    """Metrics of a task that isn't binary."""


def summarize(evaluation: Evaluation, spec: Spec, slice_: str = OVERALL) -> list[TaskSummary]:
    """Every task of the spec, in its order."""

    def compared(task: str, metric: str) -> Compared:
        return Compared(
            evaluation.value(task, metric, slice_=slice_),
            evaluation.value(task, ORACLE_PREFIX + metric, slice_=slice_),
            evaluation.gap_closed(task, metric, slice_),
            evaluation.value(task, metric, BASELINE, slice_),
        )

    def value(task: Task, metric: str) -> float:
        return evaluation.value(task.name, metric, slice_=slice_)

    names = {"binary": (), "multiclass": ("accuracy", "log_loss"), "regression": ("mse", "mae")}
    return [
        TaskSummary(
            task,
            count=value(task, "count"),
            positives=value(task, "mean_label") if task.type == "binary" else math.nan,
            auc=compared(task.name, "auc"),
            gauc=compared(task.name, "gauc"),
            gauc_share=value(task, "gauc_impression_share"),
            others={name.replace("_", " "): value(task, name) for name in names[task.type]},
        )
        for task in spec.tasks
    ]


@dataclasses.dataclass(frozen=True)
class Column:
    """A column of a table of metrics."""

    group: str
    """`AUC`, `GAUC`, or nothing."""
    title: str
    brief: str
    """The title on the command line; empty: not shown there."""
    of: Callable[[TaskSummary], float]
    form: str
    is_change: bool = False


COLUMNS = (
    Column("", "targets", "targets", lambda s: s.count, ",.0f"),
    Column("", "positive", "", lambda s: s.positives, ".1%"),
    Column("AUC", "model", "AUC", lambda s: s.auc.value, ".4f"),
    Column("AUC", "oracle", "oracle", lambda s: s.auc.oracle, ".4f"),
    Column("AUC", "gap closed", "gap closed", lambda s: s.auc.gap_closed, ".0%"),
    Column("AUC", "last blessed", "", lambda s: s.auc.last_blessed, ".4f"),
    Column("AUC", "change", "vs blessed", lambda s: s.auc.change, "+.4f", is_change=True),
    Column("GAUC", "model", "GAUC", lambda s: s.gauc.value, ".4f"),
    Column("GAUC", "oracle", "oracle GAUC", lambda s: s.gauc.oracle, ".4f"),
    Column("GAUC", "gap closed", "", lambda s: s.gauc.gap_closed, ".0%"),
    Column("GAUC", "last blessed", "", lambda s: s.gauc.last_blessed, ".4f"),
    Column("GAUC", "change", "GAUC vs blessed", lambda s: s.gauc.change, "+.4f", is_change=True),
    Column("GAUC", "counted", "", lambda s: s.gauc_share, ".0%"),
)


def columns_of(summaries: Sequence[TaskSummary]) -> list[Column]:
    """Those with something to show in at least one row."""
    return [c for c in COLUMNS if not all(math.isnan(c.of(s)) for s in summaries)]


def others_text(summary: TaskSummary) -> str:
    """The metrics of a task that isn't binary, as text."""
    return ", ".join(f"{name} {number(value)}" for name, value in summary.others.items())


def number(value: float, form: str = ".4f") -> str:
    """`value` as text; a dash where it isn't known."""
    return MISSING if math.isnan(value) else format(value, form)
