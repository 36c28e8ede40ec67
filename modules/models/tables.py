"""The embedding tables a model reads, one a name."""

from __future__ import annotations

from collections.abc import Mapping

from data.channels import table_setting
from data.spec import Phase, Spec
from modules.embeddings.compressed import CompressedTable, compressed_table
from modules.embeddings.dynamic import DynamicTable
from modules.embeddings.table import EmbeddingTable
from modules.preprocessing import private_rows

Tables = Mapping[str, EmbeddingTable | CompressedTable]
_DEFAULT_TABLE_DIM = 16


def embedding_tables(
    spec: Spec, rows: dict[str, int], phase: Phase
) -> dict[str, EmbeddingTable | CompressedTable]:
    """One table a name; channels that share a name share the table.

    Args:
      rows: of every table, as `modules.preprocessing.table_rows` counts them.
      phase: what trains them.
    """
    return {name: _table(spec, name, rows[name], phase) for name in spec.tables}


def _table(spec: Spec, name: str, rows: int, phase: Phase) -> EmbeddingTable | CompressedTable:
    channels, dim, seed = spec.tables[name], table_dim(spec, name), spec.training.seed
    compression = table_setting(channels, "compression", None)
    if compression is not None:
        private = private_rows(spec, name, rows)
        return compressed_table(rows, dim, name, private, compression, seed)
    sizes = table_setting(channels, "dynamic", None)
    dynamic = sizes and DynamicTable(dim, name, sizes, seed, optimizer=phase.table_optimizer)
    large = spec.is_large(name, rows)
    return EmbeddingTable(rows, dim, name=name, large=large, seed=seed, dynamic_rows=dynamic)


def table_dim(spec: Spec, table: str) -> int:
    """Width of a table's rows."""
    return table_setting(spec.tables[table], "dim", _DEFAULT_TABLE_DIM)
