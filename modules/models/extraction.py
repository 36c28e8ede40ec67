"""What a trained model knows of users, items and pairs of them, as vectors (KEEP §4.2.3)."""

from __future__ import annotations

import tensorflow as tf

from data.channels import DenseChannel
from data.spec import Spec
from modules.embeddings.table import rows_key
from modules.features import Batch
from modules.layers.channel_blocks import mean_of_values
from modules.models.encoder import Events
from modules.models.two_tower import TwoTower
from modules.models.user_model import UserModel


def extract(model: UserModel, batch: Batch) -> dict[str, tf.Tensor]:
    """K(u, i) in its parts (KEEP eq. 4), where every target sees all of the user's events.

    Of heads that are a `TwoTower`, `user` and `item` are K̂_u and K̂_i, and `user_item` their
    product (§5.2.1). Of others, K_u is the row of the user's id, where a context channel has it,
    else H; K_i the rows of the candidate's ids and categories; K_ui the layers before the logits
    of all tasks per impression, in the spec's order.

    Returns:
      `user` float32 [B, D_u], `item` [B, K, D_i], `user_item` [B, K, D_ui].

    Raises:
      ValueError: it isn't `possible`.
    """
    encoded = model.encode_all(batch)
    at_end = model.pooled(encoded)
    if isinstance(model.heads, TwoTower):
        user, item = model.heads.user_vector(at_end), model.heads.item_vector(batch)
        return {"user": user, "item": item, "user_item": user[:, tf.newaxis] * item}
    if not possible(model):
        raise ValueError(f"extract: {model.spec.model.architecture}'s heads show no hidden layer")
    tasks = tuple(t for t in model.spec.tasks if t.per == "impression")
    num_targets = tf.shape(batch["target_mask"])[1]
    visible = tf.repeat(encoded.mask[:, tf.newaxis, 1:], num_targets, axis=1)
    hidden = model.heads.hidden(
        tf.repeat(at_end[:, tf.newaxis], num_targets, axis=1),
        batch,
        tasks,
        events=Events(encoded.hidden[:, 1:], visible),
    )
    user = _rows(model, batch, _user_channels(model.spec))
    return {
        "user": at_end if user is None else user,
        "item": _rows(model, batch, model.spec.scope("candidate")),
        "user_item": tf.concat([hidden[task.name] for task in tasks], axis=-1),
    }


def possible(model: UserModel) -> bool:
    """Whether the heads show their vectors, or a layer before the logits."""
    return isinstance(model.heads, TwoTower) or hasattr(model.heads, "hidden")


def _user_channels(spec: Spec) -> tuple:
    return tuple(c for c in spec.scope("context") if c.source_column == spec.user)


def _rows(model: UserModel, batch: Batch, channels: tuple) -> tf.Tensor | None:
    """The channels' rows side by side; None if they have none."""
    found = []
    for channel in channels:
        if isinstance(channel, DenseChannel):
            continue
        ids = batch[channel.feature]
        rows = model.tables[channel.table_name](ids, rows=batch.get(rows_key(channel.table_name)))
        rows = tf.cast(rows, tf.float32)
        found.append(mean_of_values(rows, ids) if channel.multi_valued else rows)
    return tf.concat(found, axis=-1) if found else None
