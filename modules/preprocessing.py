"""Transform's preprocessing function, derived from the spec (DESIGN §4.1, docs/contracts.md).

Ids and categories become rows of their embedding table, dense channels are normalised.
Statistics and vocabularies are learned from training events and training targets only,
whatever file split they stand in; missing values never enter them.
"""

from __future__ import annotations

import json
from collections.abc import Callable

import tensorflow as tf
import tensorflow_transform as tft

from data.channels import CategoryChannel, Channel, DenseChannel, IdChannel, table_setting
from data.spec import Spec, parse_spec
from modules.embeddings.knowledge import keys_of
from modules.embeddings.table import MISSING, NUM_RESERVED
from modules.features import DOMAIN, knowledge_features

Features = dict[str, tf.Tensor | tf.RaggedTensor]
Map = Callable[[tf.Tensor], tf.Tensor]
_CATEGORY_OOV_ROWS = 1
_FINGERPRINTS = 2**62


def preprocessing_fn(inputs: Features, custom_config: dict[str, str]) -> Features:
    """Raw instance features -> transformed features of the same names.

    Args:
      inputs: batch of raw instances; lists are ragged [B, None], scalars [B, 1] or ragged.
      custom_config: {'spec': the spec as JSON}.
    """
    spec = parse_spec(json.loads(custom_config["spec"]))
    outputs = dict(inputs)
    for table, channels in spec.tables.items():
        rows = _row_lookup(table, channels, spec, inputs)
        for sharing in channels:
            outputs[sharing.feature] = _map_flat(inputs[sharing.feature], rows)
    for channel in spec.channels:
        if isinstance(channel, DenseChannel):
            outputs[channel.feature] = _normalize(channel, spec, inputs)
    if spec.knowledge is not None:
        outputs["knowledge_user"] = _map_flat(inputs["user_id"], keys_of)
        for feature, name in knowledge_features(spec).items():
            outputs[feature] = _map_flat(inputs[f"candidate_{name}"], keys_of)
    if spec.domain is not None:
        outputs[DOMAIN] = _map_flat(
            inputs[f"candidate_{spec.domain.channel}"], _is_one_of(spec.domain.values)
        )
    return outputs


def _is_one_of(values: tuple[str, ...]) -> Map:
    """A function from raw values to 1 where they are, as text, one of `values`, else 0: int64."""

    def found(x: tf.Tensor) -> tf.Tensor:
        text = x if x.dtype == tf.string else tf.strings.as_string(x)
        hits = tf.equal(text[:, tf.newaxis], tf.constant(values)[tf.newaxis, :])
        return tf.cast(tf.reduce_any(hits, axis=-1), tf.int64)

    return found


def table_rows(spec: Spec, transform_output: tft.TFTransformOutput) -> dict[str, int]:
    """Rows of every embedding table: reserved ones, then vocabulary, then hash buckets.

    Of a dynamic table, whose ids are keys and not row numbers, the rows it has room for; of a
    compressed one, the row numbers, not what is stored (`private_rows`).
    """
    rows = {}
    for table, channels in spec.tables.items():
        dynamic = table_setting(channels, "dynamic", None)
        if dynamic is not None:
            rows[table] = NUM_RESERVED + dynamic.capacity + dynamic.tail_rows
            continue
        values = table_setting(channels, "values", None)
        if values is not None:
            vocabulary = len(values)
        elif table_setting(channels, "top_k", 1) == 0:
            vocabulary = 0
        else:
            vocabulary = transform_output.vocabulary_size_by_name(table)
        rows[table] = NUM_RESERVED + vocabulary + _hashed_rows(channels)
    return rows


def private_rows(spec: Spec, table: str, num_rows: int) -> int:
    """Row numbers of a table, of `num_rows` by `table_rows`, that no two values share."""
    return num_rows - _hashed_rows(spec.tables[table])


def _hashed_rows(channels: tuple[CategoryChannel | IdChannel, ...]) -> int:
    return table_setting(channels, "rows", _CATEGORY_OOV_ROWS)


def _row_lookup(
    table: str, channels: tuple[CategoryChannel | IdChannel, ...], spec: Spec, inputs: Features
) -> Map:
    """A function from a flat tensor of raw values to their table's rows, or a dynamic one's keys.

    A key is NUM_RESERVED + the id, or + 62 bits of the id's hash where it is text.
    """
    values = table_setting(channels, "values", None)
    top_k = table_setting(channels, "top_k", None)
    hashed = _hashed_rows(channels)
    if table_setting(channels, "dynamic", None) is not None:

        def lookup(x):
            # The hash (FarmHash's Fingerprint64) is fixed for ever: keys outlive a run.
            return tf.strings.to_hash_bucket_fast(x, _FINGERPRINTS) if x.dtype == tf.string else x

    elif values is not None:

        def lookup(x):
            hits = tf.equal(x[:, tf.newaxis], tf.constant(values)[tf.newaxis, :])
            known = tf.argmax(tf.cast(hits, tf.int8), axis=-1)
            return tf.where(tf.reduce_any(hits, axis=-1), known, len(values))

    elif top_k == 0:

        def lookup(x):
            text = x if x.dtype == tf.string else tf.strings.as_string(x)
            return tf.strings.to_hash_bucket_fast(text, hashed)

    else:
        seen = [_training_values(channel, spec, inputs) for channel in channels]
        vocabulary = tft.vocabulary(
            tf.concat(seen, axis=0),
            top_k=top_k,
            frequency_threshold=table_setting(channels, "min_count", None),
            vocab_filename=table,
        )

        def lookup(x):
            return tft.apply_vocabulary(x, vocabulary, num_oov_buckets=hashed)

    def rows(x):
        return tf.where(_is_missing(x), tf.constant(MISSING, tf.int64), lookup(x) + NUM_RESERVED)

    return rows


def _normalize(channel: DenseChannel, spec: Spec, inputs: Features) -> tf.Tensor | tf.RaggedTensor:
    """z = (x - mean) / std over training values; `bucketize` is the quantile rank in [0, 1]."""
    squash = (
        (lambda x: tf.sign(x) * tf.math.log1p(tf.abs(x)))
        if channel.normalize == "log1p"
        else tf.identity
    )
    raw = inputs[channel.feature]
    if channel.normalize == "none":
        return raw
    seen = squash(_training_values(channel, spec, inputs))
    if channel.normalize == "bucketize":
        edges = tft.quantiles(seen, channel.buckets, epsilon=0.1 / channel.buckets)

        def normalize(x):
            rank = tft.apply_buckets_with_interpolation(x, edges)
            return tf.where(tf.math.is_nan(x), x, rank)

    else:
        mean, deviation = tft.mean(seen), tf.sqrt(tft.var(seen))
        # A channel that is constant (or never present) in training carries nothing to scale by.
        mean = tf.where(tf.math.is_finite(mean), mean, 0.0)
        usable = tf.math.is_finite(deviation) & (deviation > 1e-6)
        deviation = tf.where(usable, deviation, 1.0)

        def normalize(x):
            return (squash(x) - mean) / deviation

    return _map_flat(raw, normalize)


def _training_values(channel: Channel, spec: Spec, inputs: Features) -> tf.Tensor:
    """Flat, present values of a channel that training may see."""
    x = _flat(inputs[channel.feature])
    lengths = _row_lengths(inputs[channel.feature])
    train_length = _flat(inputs["train_length"])
    splits = inputs["target_split"]
    multi_valued = getattr(channel, "multi_valued", False)
    if multi_valued:
        counts = inputs[channel.count_feature]
        lengths = _row_lengths(counts)
    if channel.scope == "sequence":
        index = tf.ragged.range(lengths).flat_values
        visible = tf.cast(index, tf.int64) < tf.repeat(train_length, lengths)
    elif channel.scope == "candidate":
        visible = tf.equal(_flat(splits), 0)
    else:
        has_train_target = tf.reduce_any(tf.equal(splits, 0), axis=1)
        visible = tf.repeat((train_length > 0) | has_train_target, lengths)
    if multi_valued:
        visible = tf.repeat(visible, _flat(counts))
    return tf.boolean_mask(x, visible & ~_is_missing(x))


def _is_missing(x: tf.Tensor) -> tf.Tensor:
    if x.dtype == tf.string:
        return tf.equal(x, "")
    if x.dtype.is_integer:
        return tf.equal(x, -1)
    return tf.math.is_nan(x)


def _flat(x: tf.Tensor | tf.RaggedTensor) -> tf.Tensor:
    return x.flat_values if isinstance(x, tf.RaggedTensor) else tf.reshape(x, [-1])


def _row_lengths(x: tf.Tensor | tf.RaggedTensor) -> tf.Tensor:
    if isinstance(x, tf.RaggedTensor):
        return x.row_lengths()
    return tf.ones([tf.shape(x)[0]], tf.int64)


def _map_flat(x, fn):
    if isinstance(x, tf.RaggedTensor):
        return x.with_flat_values(fn(x.flat_values))
    return tf.reshape(fn(_flat(x)), tf.shape(x))
