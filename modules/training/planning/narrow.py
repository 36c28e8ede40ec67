"""The same model, made as small as it can be: same channels, tasks, layers and operations.

What it needs in memory is what a trainer needs whatever the sizes: libraries, graphs, threads.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from data.channels import table_setting
from data.spec import Spec, parse_spec
from modules.embeddings.stacked import MAX_ROWS
from modules.embeddings.table import NUM_RESERVED
from modules.models.tables import table_dim
from modules.training.input.localize import large_tables

_WIDTH = 2
"""Not 1: a gradient would have other operations, to sum over what was broadcast."""
_STACKED_ROWS = NUM_RESERVED + 2
_ALONE_ROWS = MAX_ROWS + 1


def narrow(spec: Spec, rows: Mapping[str, int]) -> tuple[Spec, dict[str, int]]:
    """The spec with the smallest widths, and rows such that small and large tables stay so.

    Tables that are looked up at once (`modules/embeddings/stacked.py`) stay together, others apart.
    """
    large = large_tables(spec, rows)
    fixed = {table: count for table, count in rows.items() if _sized_by_spec(spec, table)}
    few = {
        table: min(count, _STACKED_ROWS if count <= MAX_ROWS else _ALONE_ROWS)
        for table, count in rows.items()
        if table not in large
    }
    small_rows = max([_STACKED_ROWS, *(n for table, n in few.items() if table not in fixed)])
    raw: dict[str, Any] = spec.model_dump(mode="json")
    sizes = raw["model"]
    sizes |= {
        "hidden_dim": _WIDTH * sizes["num_heads"],
        "ffn_dim": _WIDTH,
        "tower_dims": [_WIDTH for _ in sizes["tower_dims"]],
        "full_softmax_rows": small_rows,
    }
    if raw["training"]["finetune"]["adapters"]:
        raw["training"]["finetune"]["adapters"]["bottleneck_dim"] = _WIDTH
        sizes["hidden_dim"] *= 2  # wider than the bottleneck, with one head too
    dims = sorted({table_dim(spec, table) for table in spec.tables})
    for channel, narrowed in zip(spec.channels, raw["channels"], strict=True):
        if channel.kind != "dense":
            narrowed["dim"] = _WIDTH + dims.index(table_dim(spec, channel.table_name))
    return parse_spec(raw), dict.fromkeys(large, small_rows + 1) | few | fixed


def _sized_by_spec(spec: Spec, table: str) -> bool:
    settings = (table_setting(spec.tables[table], key, None) for key in ("compression", "dynamic"))
    return any(setting is not None for setting in settings)
