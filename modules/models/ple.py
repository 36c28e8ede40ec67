"""PLE's heads: shared and own experts on `model.extraction_levels` (Tang et al., 2020)."""

from __future__ import annotations

from data.spec import Spec
from modules.layers.progressive_extraction import ProgressiveExtraction
from modules.models.mixed_heads import MixedHeads
from modules.models.tables import Tables


def ple(spec: Spec, tables: Tables) -> MixedHeads:
    """Experts of `hidden_dim` over H and the candidate."""
    sizes = spec.model
    mixer = ProgressiveExtraction(
        [task.name for task in spec.tasks],
        sizes.task_experts,
        sizes.shared_experts,
        sizes.extraction_levels,
        sizes.hidden_dim,
        sizes.dropout,
        name="extraction",
    )
    return MixedHeads(spec, tables, mixer)
