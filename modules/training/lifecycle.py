"""Dynamic tables over a training run: what happens to their ids, and when their steps restart."""

from __future__ import annotations

import tensorflow as tf

from modules.embeddings.dynamic import DynamicTable
from modules.training.step import tables_of


def dynamic_tables(module: tf.Module) -> dict[str, DynamicTable]:
    """By name."""
    return {t.name: t.dynamic_rows for t in tables_of(module) if t.dynamic_rows is not None}


def lifecycle(module: tf.Module) -> dict[str, dict[str, int]]:
    """By dynamic table: what happened since this was asked last, and how it stands
    (`DynamicTable.lifecycle`)."""
    return {name: table.lifecycle() for name, table in dynamic_tables(module).items()}


def restart_steps(module: tf.Module, step: int) -> None:
    """Another phase begins at its own step 0, after `step` of the last one."""
    for table in dynamic_tables(module).values():
        table.restart_steps(step)
