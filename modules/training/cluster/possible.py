"""Which specs a placement can train."""

from __future__ import annotations

from data.spec import Spec
from modules.training.cluster.config import Cluster, ClusterError


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
