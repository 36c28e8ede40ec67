"""What ends a run on the command line: what was read, and the table of metrics."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import rich.box
import rich.table
import rich.text

from data.spec import Spec
from modules.metrics.results import Evaluation
from tfx_pipeline.report.summary import columns_of, number, others_text, summarize


def ingestion_line(summary: Mapping[str, Any]) -> str:
    """What was read and what was left out, of the summary in `ingestion.json`."""
    return (
        f"{summary['events']:,} events of {summary['users']:,} users;"
        f" {summary['duplicates']['events']:,} duplicate events dropped,"
        f" {summary['dead_letters']:,} malformed rows set aside"
    )


def metrics_table(evaluation: Evaluation, spec: Spec) -> rich.table.Table:
    """AUC and GAUC of every task, beside the oracle's and the last blessed model's where known."""
    summaries = summarize(evaluation, spec)
    columns = [column for column in columns_of(summaries) if column.brief]
    table = rich.table.Table(box=rich.box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("task")
    for column in columns:
        table.add_column(column.brief, justify="right")
    if any(summary.others for summary in summaries):
        table.add_column("other metrics")
    for summary in summaries:
        cells = [number(column.of(summary), column.form) for column in columns]
        name = rich.text.Text(summary.task.name)
        table.add_row(name, *cells, *([others_text(summary)] if summary.others else []))
    return table
