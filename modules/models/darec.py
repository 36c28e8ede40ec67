"""DARec (Yuan et al. 2019): one representation, of which nothing tells the domain.

"DARec: Deep Domain Adaptation for Cross-Domain Recommendation via Transferring Rating Patterns",
arXiv:1905.10760, built on DANN (Ganin et al. 2016).
"""

from __future__ import annotations

import tensorflow as tf
import tf_keras as keras

from data.spec import Spec, Task
from modules.features import DOMAIN, Batch
from modules.layers.gradient_reversal import reverse_gradient
from modules.layers.tower import Tower
from modules.models.domain_heads import DomainHeads
from modules.models.tables import Tables
from modules.objectives.task_loss import labelled, task_loss

_DOMAIN = Task(name="domain", label="")
_LOGITS = "$domain"


def darec(spec: Spec, tables: Tables) -> DomainHeads:
    """A representation of `hidden_dim`, then each domain's own towers.

    The paper's input is a user's row of ratings through an autoencoder of each domain, trained
    before; here it is what all our heads read. Its regularisation is the optimizer's decay.
    """
    return DomainHeads(spec, tables, Adversarial(spec))


class Adversarial(keras.layers.Layer):
    """r = σ(W x + b) for both domains, and a domain classifier behind a reversed gradient.

    σ is bounded: with relu, r grows without end where it flees the classifier.
    """

    def __init__(self, spec: Spec, name: str = "networks"):
        super().__init__(name=name, autocast=False)
        sizes = spec.model
        self._tasks = [task for task in spec.tasks if task.per == "impression"]
        self._scale = sizes.reversal_weight
        self._shared = keras.layers.Dense(sizes.hidden_dim, "sigmoid", name="shared")
        self._dropout = keras.layers.Dropout(sizes.dropout)
        self._classifier = Tower((sizes.hidden_dim,), 1, name="classifier")

    def call(
        self, x: tf.Tensor, training: bool = False
    ) -> tuple[tf.Tensor, tf.Tensor, dict[str, tf.Tensor]]:
        r = self._dropout(self._shared(x), training=training)
        domain = self._classifier(reverse_gradient(r, self._scale), training=training)
        return r, r, {_LOGITS: domain[..., 0]}

    def auxiliary_loss(
        self, outputs: dict[str, tf.Tensor], batch: Batch
    ) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        """The classifier's cross-entropy at targets with a label of a task per impression."""
        is_sub = tf.cast(batch[DOMAIN], tf.float32)
        loss, _ = task_loss(_DOMAIN, outputs[_LOGITS], is_sub, labelled(self._tasks, batch))
        return loss, {"domain/loss": loss}
