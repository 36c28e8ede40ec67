"""λ that are learned from a signal of their own, not from the loss that they weigh."""

from __future__ import annotations

import tensorflow as tf

from data.spec import Spec


class Lambdas(tf.Module):
    """λ = Σw · softmax(log w + rate · v), w the tasks' `weight`: there λ start; their sum stays.

    v learns by the model's optimizer, AdamW without decay: what its gradients are multiplied by
    plays no part, so `weighting_rate` stands inside. (It does play one in the clipping of all
    gradients together.)

    Args:
      rate: unless the spec gives one.

    Attributes:
      steepness: rate · Σw, what ∂λ/∂v has as a factor.
    """

    def __init__(self, spec: Spec, rate: float = 1.0):
        super().__init__(name="lambdas")
        self._rate = spec.training.finetune.weighting_rate or rate
        self._weights = [task.weight for task in spec.tasks]
        self.steepness = self._rate * sum(self._weights)
        self.log_lambda = tf.Variable(lambda: tf.zeros([len(spec.tasks)]), name="log_lambda")

    def __call__(self) -> tf.Tensor:
        """float32 [K], differentiable: where they only weigh, stop their gradient."""
        logits_K = tf.math.log(self._weights) + self._rate * self.log_lambda
        return sum(self._weights) * tf.nn.softmax(logits_K)
