"""CoNet (Hu et al. 2018): a network for each domain, and connections that carry to the other's."""

from __future__ import annotations

import tensorflow as tf
import tf_keras as keras

from data.spec import Model, Spec
from modules.features import Batch
from modules.layers.cross_connections import CrossConnections
from modules.models.domain_heads import DomainHeads
from modules.models.tables import Tables

_LAYERS = 3
"""Of which two are crossed, as in the authors' code."""


def conet(spec: Spec, tables: Tables) -> DomainHeads:
    """Networks of three layers of `hidden_dim`, then each domain's own towers.

    In the paper a step shows the networks two items, one of each domain; here both read the one
    that a target offers, and the network of its domain answers.
    """
    return DomainHeads(spec, tables, CrossedNetworks(spec.model))


class CrossedNetworks(keras.layers.Layer):
    """`CrossConnections` and their lasso, `model.cross_lasso` of it (eq. 9)."""

    def __init__(self, sizes: Model, name: str = "networks"):
        super().__init__(name=name, autocast=False)
        self._weight = sizes.cross_lasso
        self._crossed = CrossConnections([sizes.hidden_dim] * _LAYERS, sizes.dropout)

    def call(
        self, x: tf.Tensor, training: bool = False
    ) -> tuple[tf.Tensor, tf.Tensor, dict[str, tf.Tensor]]:
        return *self._crossed(x, training=training), {}

    def auxiliary_loss(
        self, outputs: dict[str, tf.Tensor], batch: Batch
    ) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        del outputs, batch
        lasso = self._crossed.lasso()
        return self._weight * lasso, {"cross/lasso": lasso}
