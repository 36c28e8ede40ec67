"""Tasks added to a frozen model: any number of them on one pass of its encoder.

The tasks' weights are inputs of a served graph, not variables of the model: they come and go while
it stays (docs/tuning.md).
"""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

from modules.features import Batch, visible_suffixes
from modules.layers.side_network import side_network
from modules.models.encoder import Encoded
from modules.models.user_model import UserModel, at_places


class Given(NamedTuple):
    """What added tasks read of the frozen model, float32: layers [..., S, D], what its encoder's
    first block read and each block made, pooled as H is; user [..., D], H itself; candidate
    [B, K, D], as the model's own heads read it."""

    layers: tf.Tensor
    user: tf.Tensor
    candidate: tf.Tensor


class TaskWeights(NamedTuple):
    """T tasks' weights, all but the last float32: down [T, S, D, d], down_bias [T, S, d] and
    up [T, S, d, D] of `side_network`; user [T, D], query [T, D, D], query_bias [T, D], bias [T] of
    the heads; binary, bool [T]: the answer is a probability, else (regression) a value."""

    down: tf.Tensor
    down_bias: tf.Tensor
    up: tf.Tensor
    user: tf.Tensor
    query: tf.Tensor
    query_bias: tf.Tensor
    bias: tf.Tensor
    binary: tf.Tensor


def at_end(model: UserModel, batch: Batch) -> Given:
    """As every target sees all events: layers [B, S, D], user [B, D]."""
    encoded = model.encode_all(batch)
    whole = model.encoder.pooling.whole
    pooled = [whole(h, encoded.mask) for h in _levels(encoded)]
    return _given(tf.stack(pooled, axis=-2), model, batch)


def at_targets(model: UserModel, batch: Batch) -> Given:
    """As each target sees the events before it: layers [B, K, S, D], user [B, K, D]."""
    pooling = model.encoder.pooling
    if model.spec.sequence.targets == "causal":
        encoded = model.encode(batch)
        prefixes = [pooling.prefixes(h, encoded.mask) for h in _levels(encoded)]
        at = batch["target_position"]
        pooled = tf.stack([tf.gather(h, at, batch_dims=1) for h in prefixes], axis=-2)
    else:
        rows, places = visible_suffixes(batch, model.spec)
        encoded = model.encode(rows)
        whole = [pooling.whole(h, encoded.mask) for h in _levels(encoded)]
        pooled = at_places(places, tf.stack(whole, axis=-2), batch["target_mask"])
    return _given(pooled, model, batch)


def scores(given: Given, weights: TaskWeights) -> tuple[tf.Tensor, tf.Tensor]:
    """All tasks' logits (regression: values).

        per user:        s_t = w_t · u_t + b_t
        per impression:  s_t + c · (Q_t u_t + q_t), c the candidate

    that is the model's own tower over [u, c, query(u) ⊙ c] without a hidden layer (SuperMoE eq. 8),
    its products of weights multiplied out.

    Args:
      given: of B users, as `at_end` gives it.

    Returns:
      float32 [B, K, T] per impression, [B, T] per user; which of both a task is, its name's holder
      knows.
    """
    user_BTD = side_network(given.layers, given.user, weights.down, weights.down_bias, weights.up)
    per_user_BT = tf.einsum("btd,td->bt", user_BTD, weights.user) + weights.bias
    query_BTD = tf.einsum("btd,tde->bte", user_BTD, weights.query) + weights.query_bias
    of_candidate_BKT = tf.einsum("bkd,btd->bkt", given.candidate, query_BTD)
    return per_user_BT[:, tf.newaxis] + of_candidate_BKT, per_user_BT


def answers(model: UserModel, batch: Batch, weights: TaskWeights) -> dict[str, tf.Tensor]:
    """What a server answers: probabilities (regression: values), where every target sees all.

    Returns:
      `impression` float32 [B, K, T], 0 for padding targets; `user` [B, T]; `target_count`, int64
      [B].
    """
    impression, user = scores(at_end(model, batch), weights)
    mask = batch["target_mask"]
    return {
        "impression": tf.where(mask[..., tf.newaxis], _activated(impression, weights), 0.0),
        "user": _activated(user, weights),
        "target_count": tf.reduce_sum(tf.cast(mask, tf.int64), axis=1),
    }


def weight_specs(model: UserModel) -> dict[str, tf.TensorSpec]:
    """Of the `TaskWeights` that fit a model, by name; T and d are free."""
    dim, layers = model.spec.model.hidden_dim, model.spec.model.num_blocks + 1
    shapes = {
        "down": [None, layers, dim, None],
        "down_bias": [None, layers, None],
        "up": [None, layers, None, dim],
        "user": [None, dim],
        "query": [None, dim, dim],
        "query_bias": [None, dim],
        "bias": [None],
    }
    specs = {name: tf.TensorSpec(shape, tf.float32, name) for name, shape in shapes.items()}
    return specs | {"binary": tf.TensorSpec([None], tf.bool, "binary")}


def _levels(encoded: Encoded) -> tuple[tf.Tensor, ...]:
    """Every layer, then h_o."""
    return tuple(tf.cast(h, tf.float32) for h in (*encoded.layers, encoded.hidden))


def _given(pooled: tf.Tensor, model: UserModel, batch: Batch) -> Given:
    return Given(pooled[..., :-1, :], pooled[..., -1, :], model.heads.candidate(batch))


def _activated(logits: tf.Tensor, weights: TaskWeights) -> tf.Tensor:
    return tf.where(weights.binary, tf.sigmoid(logits), logits)
