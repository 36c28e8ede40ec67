"""Rows of a spec's tables, known after Transform and bounded before it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import tensorflow_transform as tft

from data.channels import table_setting
from data.spec import Spec
from modules.embeddings.table import NUM_RESERVED
from modules.preprocessing import table_rows

ASSUMED_VALUES = 1_000
"""Of a vocabulary that the spec doesn't bound."""


class TableRows(NamedTuple):
    """rows: reserved and hashed ones included; origin: how they are known."""

    rows: int
    origin: str


class _Bounds:
    """Answers for Transform's output with the largest vocabularies that the spec allows."""

    def __init__(self, spec: Spec):
        self._spec = spec

    def vocabulary_size_by_name(self, table: str) -> int:
        return table_setting(self._spec.tables[table], "top_k", ASSUMED_VALUES)


def rows_of(
    spec: Spec, given: Mapping[str, int], transform_output: str | None = None
) -> dict[str, TableRows]:
    """Rows of every table.

    Args:
      given: by table; wins.
      transform_output: folder of Transform's graph, for the true vocabularies.

    Raises:
      ValueError: `given` names no table of the spec, or too few rows; or there is no such folder.
    """
    unknown = given.keys() - spec.tables.keys()
    if unknown:
        raise ValueError(f"no table {sorted(unknown)}; there are: {', '.join(spec.tables)}")
    for table, rows in given.items():
        if rows <= NUM_RESERVED:
            raise ValueError(f"table {table!r}: {rows} rows, of which {NUM_RESERVED} are reserved")
    source = tft.TFTransformOutput(transform_output) if transform_output else _Bounds(spec)
    try:
        counted = table_rows(spec, source)
    except OSError as error:
        raise ValueError(f"{transform_output}: no output of Transform ({error})") from None
    return {
        table: TableRows(given[table], "given")
        if table in given
        else TableRows(rows, "Transform" if transform_output else _origin(spec, table))
        for table, rows in counted.items()
    }


def _origin(spec: Spec, table: str) -> str:
    channels = spec.tables[table]
    if table_setting(channels, "dynamic", None) is not None:
        return "dynamic"
    if table_setting(channels, "values", None) is not None:
        return "values"
    top_k = table_setting(channels, "top_k", None)
    if top_k is None:
        return f"assumed: {ASSUMED_VALUES:,} values"
    return "rows" if top_k == 0 else "top_k, at most"
