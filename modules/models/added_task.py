"""One task that is trained on a frozen model, and nothing of that model."""

from __future__ import annotations

import math
import zlib

import numpy as np
import tensorflow as tf

from data.spec import Task
from modules.models.task_bank import Given, TaskWeights, scores


class AddedTask(tf.Module):
    """The weights of T = 1 `TaskWeights`, as variables.

    The way up starts at zero: u is H, which the head reads first. A task per user has no query:
    zeros stand there. Initial values depend on the seed and the task's name alone.

    Args:
      num_layers, dim: S and D of the model that it is added to.
      bottleneck_dim: d of the side network.
    """

    def __init__(self, task: Task, num_layers: int, dim: int, bottleneck_dim: int, seed: int = 0):
        super().__init__(name=f"added_{task.name}")
        rng = np.random.default_rng([seed, zlib.crc32(task.name.encode())])
        ranks = task.per == "impression"

        def zeros(name: str, *shape: int, trainable: bool = True) -> tf.Variable:
            return tf.Variable(tf.zeros([1, *shape]), trainable=trainable, name=name)

        def glorot(name: str, *shape: int, outputs: int) -> tf.Variable:
            limit = math.sqrt(6 / (dim + outputs))
            values = rng.uniform(-limit, limit, [1, *shape])
            return tf.Variable(values, dtype=tf.float32, name=name)

        # Biases by this name aren't decayed (`Step`).
        self.weights = TaskWeights(
            down=glorot("down", num_layers, dim, bottleneck_dim, outputs=bottleneck_dim),
            down_bias=zeros("down/bias", num_layers, bottleneck_dim),
            up=zeros("up", num_layers, bottleneck_dim, dim),
            user=glorot("user", dim, outputs=1),
            query=glorot("query", dim, dim, outputs=dim)
            if ranks
            else zeros("query", dim, dim, trainable=False),
            query_bias=zeros("query/bias", dim, trainable=ranks),
            bias=zeros("bias"),
            binary=tf.constant([task.type == "binary"]),
        )
        self._output = 0 if ranks else 1

    def __call__(self, given: Given) -> tf.Tensor:
        """Logits (regression: values) of N targets, float32 [N].

        Args:
          given: layers [N, S, D], user and candidate [N, D].
        """
        one_target_each = given._replace(candidate=given.candidate[:, tf.newaxis])
        logits = scores(one_target_each, self.weights)[self._output]
        return tf.reshape(logits, [-1])
