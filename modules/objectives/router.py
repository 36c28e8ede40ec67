"""What the routers of all MoE-FFNs add to a loss and to a report."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from data.spec import Model
from modules.layers.moe_ffn import MoEAux


def router_loss(aux: Sequence[MoEAux], sizes: Model) -> tf.Tensor:
    """Weighted load-balancing and z-loss, averaged over the MoE-FFNs; float32 scalar."""
    if not aux:
        return tf.zeros([])
    balance = tf.add_n([a.load_balance_loss for a in aux]) / len(aux)
    z = tf.add_n([a.z_loss for a in aux]) / len(aux)
    return sizes.load_balance_weight * balance + sizes.router_z_weight * z


def router_values(aux: Sequence[MoEAux]) -> dict[str, tf.Tensor]:
    """`expert_load`: the fraction of tokens every expert took, float32 [MoE-FFNs, E], if any."""
    return {"expert_load": tf.stack([a.load_E for a in aux])} if aux else {}
