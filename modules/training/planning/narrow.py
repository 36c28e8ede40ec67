"""The same model, made as small as it can be: same channels, tasks, layers and operations.

What it needs in memory is what a trainer needs whatever the sizes: libraries, graphs, threads.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from data.spec import Spec, parse_spec, table_setting
from modules.embeddings.table import NUM_RESERVED
from modules.training.input.localize import large_tables

_WIDTH = 2
"""Not 1: a gradient would have other operations, to sum over what was broadcast."""
_SMALL_ROWS = NUM_RESERVED + 2
_LARGE_ROWS = _SMALL_ROWS + 1


def narrow(spec: Spec, rows: Mapping[str, int]) -> tuple[Spec, dict[str, int]]:
    """The spec with the smallest widths, and rows such that small and large tables stay so."""
    raw: dict[str, Any] = spec.model_dump(mode="json")
    sizes = raw["model"]
    sizes |= {
        "hidden_dim": _WIDTH * sizes["num_heads"],
        "ffn_dim": _WIDTH,
        "tower_dims": [_WIDTH for _ in sizes["tower_dims"]],
        "full_softmax_rows": _SMALL_ROWS,
    }
    for channel in raw["channels"]:
        if channel["kind"] != "dense" and channel["dim"] is not None:
            channel["dim"] = _WIDTH
    large = large_tables(spec, rows)
    return parse_spec(raw), {
        table: count
        if _sized_by_spec(spec, table)
        else _LARGE_ROWS
        if table in large
        else min(count, _SMALL_ROWS)
        for table, count in rows.items()
    }


def _sized_by_spec(spec: Spec, table: str) -> bool:
    settings = (table_setting(spec.tables[table], key, None) for key in ("compression", "dynamic"))
    return any(setting is not None for setting in settings)
