"""Losses of the downstream tasks (eq. 3) and their weighted sum (eq. 9)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import tensorflow as tf

from data import spec as spec_lib
from modules.features import Batch
from modules.objectives.negatives import split_negatives
from modules.objectives.pairwise import pairwise_loss
from modules.objectives.ranking import RANKING_LOSSES
from modules.replicas import share_of_mean, sum_over_replicas


def task_loss(
    task: spec_lib.Task, logits_BK: tf.Tensor, labels_BK: tf.Tensor, mask_BK: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """L_k = Σ_i δ_i · loss(ŝ_i, s_i) / Σ_i δ_i   (SuperMoE eq. 3)

    δ is 1 where the target is real and its label present. The loss is cross-entropy for
    binary and multiclass tasks, the squared error for regression.

    Args:
      task: gives the type.
      logits_BK: float [B, K], or [B, K, classes] for multiclass.
      labels_BK: float32; NaN: missing. Binary 0 or 1, multiclass the class's index.
      mask_BK: bool, False for padding.

    Returns:
      The loss, 0 (with zero gradients) where nothing is labelled, and Σδ; float32 scalars. The
      loss is this replica's share, Σδ is over all replicas (`modules/replicas.py`).
    """
    present_BK = mask_BK & ~tf.math.is_nan(labels_BK)
    # Before the loss, not after: the gradient of an unselected NaN is NaN.
    labels_BK = tf.where(present_BK, labels_BK, 0.0)
    logits_BK = tf.cast(logits_BK, tf.float32)
    chosen = present_BK[..., tf.newaxis] if task.type == "multiclass" else present_BK
    logits_BK = tf.where(chosen, logits_BK, 0.0)
    delta_BK = tf.cast(present_BK, tf.float32)
    count = sum_over_replicas(tf.reduce_sum(delta_BK))
    loss_BK = _elementwise(task.type, logits_BK, labels_BK)
    return share_of_mean(tf.reduce_sum(delta_BK * loss_BK), count), count


def labelled(tasks: Sequence[spec_lib.Task], batch: Batch) -> tf.Tensor:
    """The real targets that have a label of one of the tasks, bool [B, K]."""
    present = [~tf.math.is_nan(batch[task.label_feature]) for task in tasks]
    return batch["target_mask"] & tf.reduce_any(tf.stack(present), axis=0)


def task_losses(
    spec: spec_lib.Spec,
    logits: Mapping[str, tf.Tensor],
    batch: Batch,
    mask_BK: tf.Tensor,
) -> tuple[dict[str, tf.Tensor], dict[str, tf.Tensor]]:
    """`task_loss` of every task's labels in a batch: the losses and the Σδ, by name.

    A task of `loss: bpr` or `softmax` has that loss instead, in a batch `with_negatives`. With
    `training.finetune.pairwise_weight` α, binary tasks per impression add the pairs of a user's
    own targets: L = L^point + α · L^pair (KEEP eq. 3).

    Args:
      mask_BK: bool, the targets that count.
    """
    alpha = spec.training.finetune.pairwise_weight
    losses, counts = {}, {}
    for task in spec.tasks:
        of_task = logits[task.name], batch[task.label_feature], mask_BK
        if task.loss == "pointwise":
            losses[task.name], counts[task.name] = task_loss(task, *of_task)
        else:
            losses[task.name], counts[task.name] = _ranking(spec, task, *of_task)
        if alpha and task.type == "binary" and task.per == "impression":
            losses[task.name] += alpha * pairwise_loss(*of_task)
    return losses, counts


def _ranking(
    spec: spec_lib.Spec,
    task: spec_lib.Task,
    logits_BT: tf.Tensor,
    labels_BT: tf.Tensor,
    mask_BT: tf.Tensor,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Of the K targets of label 1 among T = K · (1 + N)."""
    negatives = spec.training.finetune.negatives
    assert negatives is not None
    given = tf.cast(logits_BT, tf.float32), mask_BT & tf.equal(labels_BT, 1.0), mask_BT
    (positive_BK, negative_BKN), (taken_BK, _), (_, drawn_BKN) = (
        split_negatives(values, negatives.count) for values in given
    )
    return RANKING_LOSSES[task.loss](positive_BK, negative_BKN, taken_BK, drawn_BKN)


def _elementwise(kind: str, logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    if kind == "binary":
        return tf.nn.sigmoid_cross_entropy_with_logits(labels, logits)
    if kind == "multiclass":
        return tf.nn.sparse_softmax_cross_entropy_with_logits(tf.cast(labels, tf.int32), logits)
    return tf.square(logits - labels)


def weighted_total(
    losses: Mapping[str, tf.Tensor], weights: Mapping[str, float | tf.Tensor]
) -> tf.Tensor:
    """Loss = Σ_k λ_k · L_k   (SuperMoE eq. 9)

    Raises:
      ValueError: `losses` and `weights` don't name the same tasks.
    """
    if losses.keys() != weights.keys():
        raise ValueError(
            f"losses of {sorted(losses)} but weights of {sorted(weights)}: one λ a task is needed"
        )
    return tf.add_n([weights[name] * loss for name, loss in losses.items()])
