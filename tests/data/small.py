"""A small spec with every kind of channel and task, and how its events become tables."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from data import events
from data.columns import Chunk, File, event_columns, user_columns
from data.spec import Spec, parse_spec

CHANNELS = [
    {"name": "item", "scope": "sequence", "kind": "id", "rows": 8},
    {"name": "shop", "scope": "sequence", "kind": "id", "dtype": "string", "rows": 8},
    {"name": "place", "scope": "sequence", "kind": "category"},
    {"name": "tags", "scope": "sequence", "kind": "category", "multi_valued": True},
    {"name": "price", "scope": "sequence", "kind": "dense"},
    {"name": "gap", "scope": "sequence", "kind": "dense", "column": "$interval"},
    {
        "name": "click",
        "scope": "sequence",
        "kind": "category",
        "values": ["0", "1"],
        "outcome": True,
    },
    {"name": "item", "scope": "candidate", "kind": "id", "table": "item"},
    {
        "name": "tags",
        "scope": "candidate",
        "kind": "category",
        "table": "tags",
        "multi_valued": True,
    },
    {"name": "price", "scope": "candidate", "kind": "dense"},
    {"name": "gap", "scope": "candidate", "kind": "dense", "column": "$interval"},
    {"name": "city", "scope": "context", "kind": "category"},
    {"name": "age", "scope": "context", "kind": "dense"},
]
"""One of every kind."""


def channels_named(*names: str) -> list[dict]:
    """Those of CHANNELS with these names."""
    assert set(names) <= {channel["name"] for channel in CHANNELS}
    return [channel for channel in CHANNELS if channel["name"] in names]


def small_spec(**overrides) -> Spec:
    raw = {
        "name": "small",
        "source": {"format": "tabular", "path": "events*", "users": "users*"},
        "sequence": {"max_length": 2, "window": 5},
        "split": {"by": "user", "eval_fraction": 0.4},
        "channels": CHANNELS,
        "tasks": [
            {"name": "click", "label": "click", "oracle": "click_p"},
            {"name": "stars", "label": "stars", "type": "multiclass", "classes": ["a", "b", "c"]},
            {"name": "spend", "label": "spend", "type": "regression"},
            {"name": "vip", "per": "user", "label": "level", "positive": ["gold", "black"]},
        ],
        "training": {"pretrain": {"epochs": 0}},
    }
    return parse_spec(raw | overrides)


EVENT_TYPES = {
    "user_id": pa.string(),
    "time_ms": pa.int64(),
    "item": pa.int64(),
    "shop": pa.string(),
    "place": pa.string(),
    "tags": pa.list_(pa.string()),
    "price": pa.float64(),
    "click": pa.string(),
    "click_p": pa.float64(),
    "stars": pa.string(),
    "spend": pa.float64(),
}
USER_TYPES = {
    "user_id": pa.string(),
    "city": pa.string(),
    "age": pa.float64(),
    "level": pa.string(),
}


def raw_table(rows: list[dict], types: dict[str, pa.DataType]) -> pa.Table:
    return pa.table({n: pa.array([r.get(n) for r in rows], t) for n, t in types.items()})


def conformed(table: pa.Table, columns, text: bool = False) -> tuple[pa.Table, list]:
    chunk = Chunk(table, np.arange(1, table.num_rows + 1), text)
    return events.conform(chunk, File("file", "events", 0), columns)


def event_table(rows: list[dict], spec: Spec) -> pa.Table:
    table, letters = conformed(raw_table(rows, EVENT_TYPES), event_columns(spec))
    assert not letters
    return table


def user_table(rows: list[dict], spec: Spec) -> pa.Table:
    table, letters = conformed(raw_table(rows, USER_TYPES), user_columns(spec))
    assert not letters
    return table
