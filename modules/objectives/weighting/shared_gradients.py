"""Gradients of several losses with respect to the last weights that they share."""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

from modules.replicas import sum_over_replicas


def shared_gradients(
    losses_of: Callable[[tf.Tensor], dict[str, tf.Tensor]], user_BKD: tf.Tensor
) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
    """∇_W of every loss, W the last shared layer.

    Methods that compare tasks' gradients take the last shared weights for all of them, which saves
    a pass through the encoder a task (GradNorm §3.1). Which these are depends on the encoder; so W
    here is a linear layer with bias put between H and the heads, at the identity:
    H' = [H, 1] · W, W = [I; 0]. Then ∇_W L = Σ_targets [h, 1] ⊗ ∂L/∂h, whatever made H and
    whatever reads it. (Gradients by H itself would tell nothing of two tasks that are labelled at
    different targets: they are orthogonal.) Heads that share experts of their own, and the
    candidate's projection, are left out.

    Args:
      losses_of: H -> named losses, this replica's shares.
      user_BKD: H at every target, float32.

    Returns:
      The losses, to be differentiated as usual, and float32 [N, (D + 1) · D], the gradients over
      all replicas in the losses' order; constants.
    """
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(user_BKD)
        losses = losses_of(user_BKD)
    bias_BK1 = tf.ones_like(user_BKD[..., :1])
    input_BKI = tf.concat([user_BKD, bias_BK1], axis=-1)
    gradients = []
    for loss in losses.values():
        by_user_BKD = tape.gradient(loss, user_BKD, unconnected_gradients="zero")
        gradients.append(tf.reshape(tf.einsum("bki,bkd->id", input_BKI, by_user_BKD), [-1]))
    return losses, sum_over_replicas(tf.stop_gradient(tf.stack(gradients)))
