"""The table of metrics that ends a run on the command line."""

from __future__ import annotations

import math

import rich.box
import rich.table
import rich.text

from data.spec import Spec
from modules.metrics.results import Evaluation
from tfx_pipeline.report.summary import TaskSummary, number, summarize


def metrics_table(evaluation: Evaluation, spec: Spec) -> rich.table.Table:
    """AUC and GAUC of every task, beside the oracle's and the last blessed model's where known."""
    summaries = summarize(evaluation, spec)
    table = rich.table.Table(box=rich.box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("task")
    columns = {"targets": lambda s: number(s.count, ",.0f"), "AUC": lambda s: number(s.auc.value)}
    if any(not math.isnan(s.auc.oracle) for s in summaries):
        columns["oracle"] = lambda s: number(s.auc.oracle)
        columns["gap closed"] = lambda s: number(s.auc.gap_closed, ".0%")
    if evaluation.has_baseline:
        columns["vs blessed"] = lambda s: number(s.auc.change, "+.4f")
    columns["GAUC"] = lambda s: number(s.gauc.value)
    if any(not math.isnan(s.gauc.oracle) for s in summaries):
        columns["oracle GAUC"] = lambda s: number(s.gauc.oracle)
    if evaluation.has_baseline:
        columns["GAUC vs blessed"] = lambda s: number(s.gauc.change, "+.4f")
    if any(s.others for s in summaries):
        columns["other metrics"] = _others
    for title in columns:
        table.add_column(title, justify="left" if title == "other metrics" else "right")
    for summary in summaries:
        table.add_row(
            rich.text.Text(summary.task.name), *(cell(summary) for cell in columns.values())
        )
    return table


def _others(summary: TaskSummary) -> str:
    return ", ".join(f"{name} {number(value)}" for name, value in summary.others.items())
