"""The input graph: transformed, ragged instances -> padded model batches.

One code path for training, evaluation and serving, so there is no skew between them.
Everything is a graph op over the whole batch; shapes are in docs/contracts.md.
"""

from __future__ import annotations

import tensorflow as tf

from data.channels import Channel, DenseChannel
from data.spec import Spec
from modules.embeddings.knowledge import NOTHING
from modules.embeddings.table import MISSING, PAD, rows_key

Batch = dict[str, tf.Tensor]
Ragged = dict[str, tf.RaggedTensor]
DOMAIN = "target_domain"
"""Of each target, where the spec has a `domain`: whether it is the sub-domain's."""
HELD_OUT = "held_out"
"""Of each instance, under `weighting: bilevel`: validated on, its labels not trained on."""
_TRAIN, _EVAL = 0, 1


def as_ragged(features: dict, spec: Spec) -> Ragged:
    """Uniform view of parsed features: lists ragged [B, None]; multi-valued [B, None, None]."""
    ragged = {name: _to_ragged(value) for name, value in features.items()}
    for channel in spec.channels:
        if getattr(channel, "multi_valued", False) and channel.feature in ragged:
            counts = ragged.pop(channel.count_feature)
            values = ragged[channel.feature].flat_values
            per_event = tf.RaggedTensor.from_row_lengths(values, counts.flat_values, validate=False)
            ragged[channel.feature] = counts.with_values(per_event)
    return ragged


def lengths(ragged: Ragged, spec: Spec) -> tuple[tf.Tensor, tf.Tensor]:
    """Events L_b and targets K_b of every instance, int64 [B]: those of the longest list.

    A request may leave a channel out (its values are missing) or `target_position`.
    """
    events = [c.feature for c in spec.scope("sequence")]
    targets = [c.feature for c in spec.scope("candidate")] + ["target_position"]
    return _longest(ragged, events), _longest(ragged, targets)


def require_complete_lists(ragged: Ragged, spec: Spec) -> Ragged:
    """Checks that every list of a request is as long as the others of its scope, or absent.

    A shorter one can't be told which of its events or candidates it speaks of.

    Raises:
      tf.errors.InvalidArgumentError: one isn't (in the graph, where a server answers with it).
    """
    events = [c.feature for c in spec.scope("sequence")]
    targets = [c.feature for c in spec.scope("candidate")] + ["target_position"]
    checks = []
    for names in (events, targets):
        names = [name for name in names if name in ragged]
        counts = _row_lengths(ragged, names)
        longest = tf.reduce_max(counts, axis=0)
        complete = tf.reduce_all(tf.equal(counts, longest) | tf.equal(counts, 0))
        message = "lists of different lengths in one instance, each column an instance of"
        checks.append(tf.debugging.Assert(complete, [message, names, counts], summarize=100))
    with tf.control_dependencies([check for check in checks if check is not None]):
        return {name: tf.identity(value) for name, value in ragged.items()}


def newest_events(ragged: Ragged, spec: Spec) -> Ragged:
    """Cuts a request's history to its newest `window` events, all that training ever holds.

    Attention costs the square of a history's length; positions are moved along with the cut.
    """
    window = spec.sequence.window
    num_events, _ = lengths(ragged, spec)
    cut = {c.feature: ragged[c.feature][:, -window:] for c in spec.scope("sequence")}
    if "target_position" in ragged:
        position = ragged["target_position"]
        dropped = tf.repeat(tf.maximum(num_events - window, 0), position.row_lengths())
        moved = tf.maximum(position.flat_values - dropped, 0)
        cut["target_position"] = position.with_flat_values(moved)
    return ragged | cut


def select_split(ragged: Ragged, spec: Spec, split: str) -> Ragged:
    """Keeps the targets of one split; for 'train' also cuts the window to its training events, and
    keeps no impression outside the `domain` that is trained on.

    Raises:
      ValueError: split is neither 'train' nor 'eval'.
    """
    code = {"train": _TRAIN, "eval": _EVAL}.get(split)
    if code is None:
        raise ValueError(f"split {split!r}: expected 'train' or 'eval'")
    keep = tf.equal(ragged["target_split"].flat_values, code)
    if split == "train" and spec.domain is not None and spec.domain.train_on == "domain":
        keep &= (ragged[DOMAIN].flat_values > 0) | (ragged["target_per_user"].flat_values > 0)
    names = [name for name in target_features(spec) if name in ragged]
    kept = _filtered(ragged, names, ragged["target_split"].row_splits, keep)
    if split == "train":
        names = [c.feature for c in spec.scope("sequence")]
        events = tf.ragged.range(ragged[names[0]].row_lengths())
        visible = events.flat_values < tf.gather(
            ragged["train_length"].flat_values, events.value_rowids()
        )
        kept |= _filtered(ragged, names, events.row_splits, visible)
    return ragged | kept


def knowledge_features(spec: Spec) -> dict[str, str]:
    """Features that hold a target's keys of extracted vectors -> their candidate channels."""
    if spec.knowledge is None:
        return {}
    named = {"item": spec.knowledge.item, "category": spec.knowledge.category}
    return {f"knowledge_{kind}": name for kind, name in named.items() if name is not None}


def target_features(spec: Spec) -> list[str]:
    names = ["target_position", "target_split", *knowledge_features(spec)]
    names += [DOMAIN] if spec.domain is not None else []
    names += [c.feature for c in spec.scope("candidate")]
    names += [f for t in spec.tasks for f in (t.label_feature, t.oracle_feature)]
    return names


def pad(ragged: Ragged, spec: Spec, length_multiple: int = 1) -> Batch:
    """Ragged instances -> dense batch.

    Args:
      ragged: as `as_ragged` gives them. `target_position` may be absent (all events visible).
      length_multiple: L and K are rounded up to a multiple of it, to keep few static shapes.

    Returns:
      sequence_<channel> [B, L(, V)], sequence_mask bool [B, L], context_<channel> [B(, V)],
      candidate_<channel> [B, K(, V)], target_position int64 [B, K], target_mask bool [B, K],
      label_<task> float32 [B, K] where present. Padding: row 0, NaN for dense and labels.
      Where the spec plugs knowledge in: its keys, int64 knowledge_user [B], knowledge_item and
      knowledge_category [B, K], `NOTHING` for padding and what isn't given. Where the spec has a
      `domain`: target_domain bool [B, K], False for padding and where it isn't given. Under
      `weighting: bilevel`: held_out bool [B], nobody; training knows who is.
    """
    num_events, num_targets = lengths(ragged, spec)
    max_events = _round_up(tf.reduce_max(tf.concat([[0], num_events], 0)), length_multiple)
    max_targets = _round_up(tf.reduce_max(tf.concat([[0], num_targets], 0)), length_multiple)
    target_shape = tf.stack([-1, max_targets])
    batch: Batch = {
        "sequence_mask": tf.sequence_mask(num_events, max_events),
        "target_mask": tf.sequence_mask(num_targets, max_targets),
    }
    for channel in spec.scope("sequence"):
        batch[channel.feature] = _dense(ragged[channel.feature], batch["sequence_mask"], channel)
    for channel in spec.scope("candidate"):
        batch[channel.feature] = _dense(ragged[channel.feature], batch["target_mask"], channel)
    one_each = tf.ones_like(num_events, tf.bool)[:, tf.newaxis]
    for channel in spec.scope("context"):
        batch[channel.feature] = _dense(ragged[channel.feature], one_each, channel)[:, 0]
    if "target_position" in ragged:
        given = ragged["target_position"].to_tensor(default_value=-1, shape=target_shape)
        sees_all = given < 0
    else:
        given = tf.zeros_like(batch["target_mask"], tf.int64)
        sees_all = tf.ones_like(batch["target_mask"])
    batch["target_position"] = tf.where(
        sees_all, num_events[:, tf.newaxis], tf.minimum(given, num_events[:, tf.newaxis])
    )
    for task in spec.tasks:
        if task.label_feature in ragged:
            batch[task.label_feature] = ragged[task.label_feature].to_tensor(
                default_value=float("nan"), shape=target_shape
            )
    if spec.knowledge is not None and spec.knowledge.path:
        batch |= _knowledge_keys(ragged, one_each, batch["target_mask"])
    if spec.domain is not None:
        batch[DOMAIN] = tf.zeros_like(batch["target_mask"])
        if DOMAIN in ragged:
            batch[DOMAIN] = ragged[DOMAIN].to_tensor(default_value=0, shape=target_shape) > 0
    if spec.training.finetune.weighting == "bilevel":
        batch[HELD_OUT] = tf.zeros_like(num_events, tf.bool)
    return batch


def trained_targets(batch: Batch) -> tf.Tensor:
    """Targets whose labels weights may learn from, bool [B, K]: none of a user now held out."""
    if HELD_OUT not in batch:
        return batch["target_mask"]
    return batch["target_mask"] & ~batch[HELD_OUT][:, tf.newaxis]


def _knowledge_keys(ragged: Ragged, one_each: tf.Tensor, target_mask: tf.Tensor) -> Batch:
    def keys(feature: str, mask: tf.Tensor) -> tf.Tensor:
        if feature not in ragged:
            return tf.fill(tf.shape(mask), tf.constant(NOTHING, tf.int64))
        shape = tf.stack([-1, tf.shape(mask, tf.int64)[1]])
        return ragged[feature].to_tensor(default_value=NOTHING, shape=shape)

    return {
        "knowledge_user": keys("knowledge_user", one_each)[:, 0],
        "knowledge_item": keys("knowledge_item", target_mask),
        "knowledge_category": keys("knowledge_category", target_mask),
    }


def visible_suffixes(batch: Batch, spec: Spec) -> tuple[Batch, tf.Tensor]:
    """`expanded` targets: one row for every real target, holding what it sees.

    Returns:
      sequence features [N, max_length(, V)], right-aligned to the newest visible event and
      shifted left (so index 0 is the oldest), with their `sequence_mask`, and context
      features [N]; and the targets' places, int64 [N, 2] = (instance, target).
    """
    places = tf.where(batch["target_mask"])
    end = tf.gather_nd(batch["target_position"], places)
    rows = suffix_features(batch, spec, places[:, 0], end)
    return rows, places


def single_targets(batch: Batch, spec: Spec) -> tuple[Batch, tf.Tensor]:
    """`visible_suffixes` with each row's own target: candidate features [N, 1(, V)]."""
    rows, places = visible_suffixes(batch, spec)
    for channel in spec.scope("candidate"):
        rows[channel.feature] = tf.gather_nd(batch[channel.feature], places)[:, tf.newaxis]
    for feature in {"knowledge_item", "knowledge_category", DOMAIN} & batch.keys():
        rows[feature] = tf.gather_nd(batch[feature], places)[:, tf.newaxis]
    if "knowledge_user" in batch:
        rows["knowledge_user"] = tf.gather(batch["knowledge_user"], places[:, 0])
    return rows, places


def suffix_features(batch: Batch, spec: Spec, instance: tf.Tensor, end: tf.Tensor) -> Batch:
    """For each (instance, end): the newest `max_length` of the first `end` events.

    Args:
      instance, end: int64 [N].
    """
    length = spec.sequence.max_length
    start = tf.maximum(end - length, 0)
    index = start[:, tf.newaxis] + tf.range(length, dtype=tf.int64)[tf.newaxis, :]
    mask = index < end[:, tf.newaxis]
    max_events = tf.shape(batch["sequence_mask"], tf.int64)[1]
    # A batch may hold no event at all; gather needs one column to point at.
    padded_events = tf.maximum(max_events, 1) - max_events
    index = tf.minimum(index, tf.maximum(max_events, 1) - 1)
    rows: Batch = {"sequence_mask": mask}
    for channel in spec.scope("sequence"):
        values = batch[channel.feature]
        paddings = [[0, 0], [0, padded_events]] + [[0, 0]] * (values.shape.rank - 2)
        values = tf.gather(tf.pad(values, paddings), instance)
        values = tf.gather(values, index, batch_dims=1)
        keep = tf.reshape(mask, tf.concat([tf.shape(mask), [1] * (values.shape.rank - 2)], 0))
        filler = tf.constant(float("nan") if values.dtype.is_floating else PAD, values.dtype)
        rows[channel.feature] = tf.where(keep, values, filler)
    for channel in spec.scope("context"):
        rows[channel.feature] = tf.gather(batch[channel.feature], instance)
    own_rows = {rows_key(table) for table in spec.tables} & batch.keys()
    return rows | {name: batch[name] for name in own_rows}


def _filtered(
    ragged: Ragged, names: list[str], row_splits: tf.Tensor, keep: tf.Tensor
) -> dict[str, tf.RaggedTensor]:
    """The named lists without the items where `keep`, bool [items], is false.

    As `tf.ragged.boolean_mask`, with a fifth of its ops: the new rows are worked out once for all.
    """
    splits = tf.stack([ragged[name].row_splits for name in names])
    same = tf.debugging.Assert(
        tf.reduce_all(tf.equal(splits, row_splits)),
        ["lists of different lengths in one instance, among", names],
    )
    with tf.control_dependencies([same] if same is not None else []):
        items = tf.where(keep)[:, 0]
    kept_before = tf.concat([[0], tf.cumsum(tf.cast(keep, tf.int64))], axis=0)
    kept_splits = tf.gather(kept_before, row_splits)
    return {
        name: tf.RaggedTensor.from_row_splits(
            tf.gather(ragged[name].values, items), kept_splits, validate=False
        )
        for name in names
    }


def _longest(ragged: Ragged, names: list[str]) -> tf.Tensor:
    return tf.reduce_max(_row_lengths(ragged, [name for name in names if name in ragged]), axis=0)


def _row_lengths(ragged: Ragged, names: list[str]) -> tf.Tensor:
    """int64 [names, B], in as many operations for a hundred lists as for one."""
    splits = tf.stack([ragged[name].row_splits for name in names])
    return splits[:, 1:] - splits[:, :-1]


def _dense(ragged: tf.RaggedTensor, mask: tf.Tensor, channel: Channel) -> tf.Tensor:
    """[B, L(, V)]: a list shorter than `mask` says is completed by missing values, then padded."""
    length = tf.shape(mask, tf.int64)[1]
    if isinstance(channel, DenseChannel):
        return ragged.to_tensor(default_value=float("nan"), shape=tf.stack([-1, length]))
    if channel.multi_valued:
        return ragged.to_tensor(default_value=PAD, shape=tf.stack([-1, length, -1]))
    rows = ragged.to_tensor(default_value=PAD, shape=tf.stack([-1, length]))
    return tf.where(mask & tf.equal(rows, PAD), tf.constant(MISSING, tf.int64), rows)


def _round_up(n: tf.Tensor, multiple: int) -> tf.Tensor:
    return -(-n // multiple) * multiple


def _to_ragged(value: tf.Tensor | tf.SparseTensor | tf.RaggedTensor) -> tf.RaggedTensor:
    if isinstance(value, tf.RaggedTensor):
        return value
    if isinstance(value, tf.SparseTensor):
        return tf.RaggedTensor.from_sparse(value)
    return tf.RaggedTensor.from_uniform_row_length(tf.reshape(value, [-1]), 1, validate=False)
