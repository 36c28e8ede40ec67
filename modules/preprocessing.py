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
    visible = _visible(inputs)
    for table, channels in spec.tables.items():
        rows = _row_lookup(table, channels, visible, inputs)
        for sharing in channels:
            outputs[sharing.feature] = _map_flat(inputs[sharing.feature], rows)
    outputs |= _normalized(spec, visible, inputs)
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
    table: str,
    channels: tuple[CategoryChannel | IdChannel, ...],
    visible: dict[str, tf.Tensor],
    inputs: Features,
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
        seen = [_training_values(channel, visible, inputs) for channel in channels]
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


def _normalized(spec: Spec, visible: dict[str, tf.Tensor], inputs: Features) -> Features:
    """z = (x - mean) / std over training values; `bucketize` is the quantile rank in [0, 1]."""
    ranked, scaled = (
        [c for c in spec.channels if isinstance(c, DenseChannel) and c.normalize in ways]
        for ways in (["bucketize"], ["z_score", "log1p"])
    )
    moments = _moments(scaled, visible, inputs)
    maps = {c: _quantile_rank(c, visible, inputs) for c in ranked}
    maps |= {c: _z_score(c, *moments[c.feature]) for c in scaled}
    return {c.feature: _map_flat(inputs[c.feature], maps[c]) for c in maps}


def _quantile_rank(channel: DenseChannel, visible: dict[str, tf.Tensor], inputs: Features) -> Map:
    seen = _training_values(channel, visible, inputs)
    edges = tft.quantiles(seen, channel.buckets, epsilon=0.1 / channel.buckets)

    def rank(x):
        ranked = tft.apply_buckets_with_interpolation(x, edges)
        return tf.where(tf.math.is_nan(x), x, ranked)

    return rank


def _z_score(channel: DenseChannel, mean: tf.Tensor, deviation: tf.Tensor) -> Map:
    return lambda x: (_squash(channel, x) - mean) / deviation


def _squash(channel: DenseChannel, x: tf.Tensor) -> tf.Tensor:
    return tf.sign(x) * tf.math.log1p(tf.abs(x)) if channel.normalize == "log1p" else x


def _moments(
    channels: list[DenseChannel], visible: dict[str, tf.Tensor], inputs: Features
) -> dict[str, tuple[tf.Tensor, tf.Tensor]]:
    """By feature, mean and deviation of what training may see of it: scalars.

    Two analyzers a scope, of a tensor with a column a channel, however many these are.
    """
    moments = {}
    for scope, seen_in_training in visible.items():
        of_scope = [c for c in channels if c.scope == scope]
        if not of_scope:
            continue
        values = tf.stack([_squash(c, _flat(inputs[c.feature])) for c in of_scope], axis=1)
        # TFT passes over NaN: what isn't to be seen, as what is missing.
        seen = tf.where(seen_in_training[:, tf.newaxis], values, float("nan"))
        # In float64, as columns are summed value by value: in float32 a constant would deviate.
        # Reshaped, as NumPy makes a number of a float64 array of one, and TFT hands that on.
        mean, variance = (
            tf.reshape(analyze(seen, reduce_instance_dims=False, output_dtype=tf.float64), [-1])
            for analyze in (tft.mean, tft.var)
        )
        deviation = tf.sqrt(variance)
        # A channel that is constant (or never present) in training carries nothing to scale by.
        mean = tf.where(tf.math.is_finite(mean), mean, 0.0)
        usable = tf.math.is_finite(deviation) & (deviation > 1e-6 * tf.maximum(tf.abs(mean), 1.0))
        deviation = tf.where(usable, deviation, 1.0)
        for index, channel in enumerate(of_scope):
            moments[channel.feature] = (
                tf.cast(mean[index], tf.float32),
                tf.cast(deviation[index], tf.float32),
            )
    return moments


def _visible(inputs: Features) -> dict[str, tf.Tensor]:
    """By scope, what training may see: bool over the flat events, over the targets, [B].

    One for all channels of a scope, as their lists are equally long (docs/contracts.md).
    """
    train_length, splits = _flat(inputs["train_length"]), inputs["target_split"]
    num_events = _flat(inputs["sequence_length"])
    event = tf.ragged.range(num_events).flat_values
    has_train_target = tf.reduce_any(tf.equal(splits, 0), axis=1)
    return {
        "sequence": event < tf.repeat(train_length, num_events),
        "candidate": tf.equal(_flat(splits), 0),
        "context": (train_length > 0) | has_train_target,
    }


def _training_values(
    channel: Channel, visible: dict[str, tf.Tensor], inputs: Features
) -> tf.Tensor:
    """Flat, present values of a channel that training may see."""
    x, seen = _flat(inputs[channel.feature]), visible[channel.scope]
    if getattr(channel, "multi_valued", False):
        seen = tf.repeat(seen, _flat(inputs[channel.count_feature]))
    return tf.gather(x, tf.where(seen & ~_is_missing(x))[:, 0])


def _is_missing(x: tf.Tensor) -> tf.Tensor:
    if x.dtype == tf.string:
        return tf.equal(x, "")
    if x.dtype.is_integer:
        return tf.equal(x, -1)
    return tf.math.is_nan(x)


def _flat(x: tf.Tensor | tf.RaggedTensor) -> tf.Tensor:
    return x.flat_values if isinstance(x, tf.RaggedTensor) else tf.reshape(x, [-1])


def _map_flat(x, fn):
    if isinstance(x, tf.RaggedTensor):
        return x.with_flat_values(fn(x.flat_values))
    return tf.reshape(fn(_flat(x)), tf.shape(x))
