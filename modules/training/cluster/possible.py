"""Which specs a placement can train."""

from __future__ import annotations

import sys

from data.channels import CategoryChannel, IdChannel, table_setting
from data.spec import Spec
from modules.training.cluster.config import Cluster, ClusterError

_RESERVED_ROWS = 3  # NUM_RESERVED of modules/embeddings/table.py, which imports TensorFlow


def require_possible(cluster: Cluster, spec: Spec) -> None:
    """Checks that a cluster's placement can train a spec's tables.

    Raises:
      ClusterError: it can't train one of them; names it, and what can.
    """
    if spec.dynamic_tables and cluster.placement != "single":
        raise ClusterError(
            f"placement: {cluster.placement} can't train the dynamic table"
            f" {spec.dynamic_tables[0]!r}; take placement 'single', or give the table 'rows'"
            " (hashed ids, which every placement trains) instead of 'dynamic'"
        )
    if cluster.placement == "hybrid" and not any(
        spec.is_large(table, _most_rows(channels)) for table, channels in spec.tables.items()
    ):
        raise ClusterError(
            "placement: hybrid keeps tables of more than model.full_softmax_rows"
            f" ({spec.model.full_softmax_rows}) rows on its parameter servers, and the spec has"
            " none; lower that number, or take 'mirrored' or 'single'"
        )


def _most_rows(channels: tuple[CategoryChannel | IdChannel, ...]) -> int:
    """As far as is known before the data is: a vocabulary without `top_k` has any size."""
    values = table_setting(channels, "values", None)
    top_k = table_setting(channels, "top_k", None)
    vocabulary = len(values) if values is not None else sys.maxsize if top_k is None else top_k
    return _RESERVED_ROWS + vocabulary + table_setting(channels, "rows", 1)
