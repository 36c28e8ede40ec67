"""MMoE's heads: `model.shared_experts`, and a gate a task (Ma et al., 2018)."""

from __future__ import annotations

from data.spec import Spec
from modules.layers.multi_gate_mixture import MultiGateMixture
from modules.models.mixed_heads import MixedHeads
from modules.models.tables import Tables


def mmoe(spec: Spec, tables: Tables) -> MixedHeads:
    """Experts of `hidden_dim` over H and the candidate."""
    sizes = spec.model
    names = [task.name for task in spec.tasks]
    mixer = MultiGateMixture(
        names, sizes.shared_experts, sizes.hidden_dim, sizes.dropout, name="mixture"
    )
    return MixedHeads(spec, tables, mixer)
