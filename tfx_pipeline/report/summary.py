"""A task's metrics in one slice, beside what they are compared with."""

from __future__ import annotations

import dataclasses
import math

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


def number(value: float, form: str = ".4f") -> str:
    """`value` as text; a dash where it isn't known."""
    return MISSING if math.isnan(value) else format(value, form)
