"""How large a batch is."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class BatchSize:
    """instances: of a step, over all replicas; events, targets: of each instance."""

    instances: int
    events: int
    targets: int
