"""The ceiling: AUC and GAUC of the probabilities that drew the labels."""

from __future__ import annotations

import pathlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data.spec import Spec, Task


def oracle_metrics(out_dir: str | pathlib.Path, spec: Spec) -> dict[str, dict[str, float | None]]:
    """What no model can pass in expectation, over all rows with a label.

    Args:
      out_dir: a directory written by `simulate`.
      spec: only its binary tasks with an `oracle` column count.

    Returns:
      Task name -> `auc`, `gauc` (None without `group_by`, or where no user has both classes),
      `examples` and `positives`.

    Raises:
      ValueError: no task has an oracle, or no file matches the spec's `source.path`.
    """
    tasks = [t for t in spec.tasks if t.oracle and t.type == "binary"]
    if not tasks:
        raise ValueError(f"oracle_metrics: no binary task of spec {spec.name!r} has an oracle")
    return {task.name: _task_metrics(pathlib.Path(out_dir), spec, task) for task in tasks}


def grouped_auc(
    groups: np.ndarray, labels: np.ndarray, scores: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """AUC of each group by the rank statistic (ties count half), and its number of rows.

    Arguments are [N]; results are [number of distinct groups], NaN for one-class groups.
    """
    order = np.lexsort((scores, groups))
    groups, labels, scores = groups[order], labels[order].astype(np.float64), scores[order]
    new_group = np.append(True, groups[1:] != groups[:-1])
    new_tie = new_group | np.append(True, scores[1:] != scores[:-1])
    group, tie = np.cumsum(new_group) - 1, np.cumsum(new_tie) - 1
    rank = np.arange(len(group)) - np.flatnonzero(new_group)[group] + 1.0
    rank = (np.bincount(tie, rank) / np.bincount(tie))[tie]
    size, positives = np.bincount(group), np.bincount(group, labels)
    above = np.bincount(group, rank * labels) - positives * (positives + 1) / 2
    pairs = positives * (size - positives)
    return np.where(pairs > 0, above / np.where(pairs > 0, pairs, 1), np.nan), size


def _task_metrics(out_dir: pathlib.Path, spec: Spec, task: Task) -> dict[str, float | None]:
    glob = spec.source.path if task.per == "impression" else spec.source.users
    paths = sorted(out_dir.glob(glob))
    if not paths:
        raise ValueError(f"oracle_metrics: no file {out_dir / glob}: simulate first")
    columns = [spec.user, task.label, task.oracle]
    table = pa.concat_tables([pq.read_table(p, columns=columns) for p in paths])
    table = table.filter(table[task.label].is_valid())
    users, labels, scores = (table[c].to_numpy() for c in columns)
    auc, _ = grouped_auc(np.zeros(len(labels), np.int64), labels, scores)
    gauc = None
    if task.group_by:
        per_user, size = grouped_auc(users, labels, scores)
        both = ~np.isnan(per_user)
        if both.any():
            gauc = float(np.average(per_user[both], weights=size[both]))
    return {
        "auc": float(auc[0]),
        "gauc": gauc,
        "examples": len(labels),
        "positives": int(labels.sum()),
    }
