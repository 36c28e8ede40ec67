"""Writes a small SavedModel with channels of every shape, as `modules.training.export` does.

`predict`, which names the channels; `serving_default`: `examples` -> `click` [B, K] = price + age
+ sum of the items + number of tags, `user_id` [B].
"""

import functools
import pathlib

import tensorflow as tf

_RAGGED = functools.partial(tf.io.RaggedFeature, row_splits_dtype=tf.int64)
FEATURES = {
    "user_id": tf.io.FixedLenFeature([], tf.string, default_value=""),
    "sequence_item": _RAGGED(tf.int64),
    "sequence_tag": _RAGGED(tf.string),
    "sequence_tag_count": _RAGGED(tf.int64),
    "candidate_price": _RAGGED(tf.float32),
    "context_age": tf.io.FixedLenFeature([], tf.float32, default_value=float("nan")),
}
INPUTS = {
    "sequence_item": tf.TensorSpec([None, None], tf.int64),
    "sequence_tag": tf.TensorSpec([None, None, None], tf.string),
    "candidate_price": tf.TensorSpec([None, None], tf.float32),
    "context_age": tf.TensorSpec([None], tf.float32),
    "sequence_length": tf.TensorSpec([None], tf.int64),
    "target_count": tf.TensorSpec([None], tf.int64),
}


class Model(tf.Module):
    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="examples")])
    def serve(self, examples):
        parsed = tf.io.parse_example(examples, FEATURES)
        items = tf.reduce_sum(parsed["sequence_item"], axis=1)
        tags = tf.reduce_sum(parsed["sequence_tag_count"], axis=1)
        check = tf.debugging.assert_equal(parsed["sequence_tag"].row_lengths(), tags)
        with tf.control_dependencies([check]):
            user = parsed["context_age"] + tf.cast(items + tags, tf.float32)
        prices = parsed["candidate_price"]
        each = tf.repeat(user, prices.row_lengths())
        click = prices.with_flat_values(prices.flat_values + each)
        return {"click": click.to_tensor(), "user_id": parsed["user_id"]}

    @tf.function(autograph=False)
    def predict(self, **tensors):
        return {"click": tensors["candidate_price"] + tensors["context_age"][:, tf.newaxis]}


def write(path: pathlib.Path) -> None:
    """Writes one to `path`, a version directory."""
    model = Model()
    inputs = {name: tf.TensorSpec(s.shape, s.dtype, name) for name, s in INPUTS.items()}
    signatures = {
        "serving_default": model.serve,
        "predict": model.predict.get_concrete_function(**inputs),
    }
    tf.saved_model.save(model, str(path), signatures=signatures)
