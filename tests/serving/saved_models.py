"""Writes small real SavedModels: `python tests/serving/saved_models.py DIR [SCALE]`.

Features of an instance: `user_id` bytes, `sequence_item` int64 [L], `candidate_price` float [K].
`serving_default` -> `click` [B, K] = sigmoid(scale · (price + sum of items / 1000)), padded with
0, `vip` [B], `user_id` [B]; `embed` -> `embedding` [B, 4] = scale · (sum, count, -sum, 2 · sum of
the items) / 1000, `user_id`. `add` -> `sum`, `difference` [N] of `x`, `y` [N], times scale.
`classify` -> `classes`, `scores` [B, 2] ("no", "yes") of `vip`; `regress` -> `outputs` [B, 1], the
first column of `embedding`. `spin` keeps a core busy for about `steps` · 10 µs.
"""

import pathlib
import sys

import tensorflow as tf

FEATURES = {
    "user_id": tf.io.FixedLenFeature([], tf.string),
    "sequence_item": tf.io.RaggedFeature(tf.int64),
    "candidate_price": tf.io.RaggedFeature(tf.float32),
}
EXAMPLES = tf.TensorSpec([None], tf.string, name="examples")


class Model(tf.Module):
    def __init__(self, scale: float):
        super().__init__()
        self.scale = tf.Variable(scale)

    @tf.function(input_signature=[EXAMPLES])
    def serve(self, examples):
        parsed = tf.io.parse_example(examples, FEATURES)
        items = tf.cast(parsed["sequence_item"], tf.float32)
        total = tf.reduce_sum(items, axis=1) / 1000.0
        prices = parsed["candidate_price"]
        click = tf.ragged.map_flat_values(
            tf.sigmoid, self.scale * (prices + tf.expand_dims(total, 1))
        )
        return {
            "click": click.to_tensor(),
            "vip": tf.sigmoid(self.scale * total),
            "user_id": parsed["user_id"],
        }

    @tf.function(input_signature=[EXAMPLES])
    def embed(self, examples):
        parsed = tf.io.parse_example(examples, FEATURES)
        items = tf.cast(parsed["sequence_item"], tf.float32).to_tensor(0.0)
        length = tf.cast(parsed["sequence_item"].row_lengths(), tf.float32)
        sums = tf.reduce_sum(items, axis=1)
        columns = tf.stack([sums, length, -sums, sums * 2.0], axis=1)
        return {"embedding": self.scale * columns / 1000.0, "user_id": parsed["user_id"]}

    @tf.function(
        input_signature=[
            tf.TensorSpec([None], tf.float32, name="x"),
            tf.TensorSpec([None], tf.float32, name="y"),
        ]
    )
    def add(self, x, y):
        return {"sum": self.scale * (x + y), "difference": self.scale * (x - y)}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="inputs")])
    def classify(self, inputs):
        vip = self.serve(inputs)["vip"]
        labels = tf.constant([["no", "yes"]])
        return {
            "classes": tf.repeat(labels, tf.size(vip), axis=0),
            "scores": tf.stack([1.0 - vip, vip], axis=1),
        }

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="inputs")])
    def regress(self, inputs):
        return {"outputs": self.embed(inputs)["embedding"][:, :1]}

    @tf.function(input_signature=[tf.TensorSpec([], tf.int64, name="steps")])
    def spin(self, steps):
        total = tf.constant(0.0)
        for _ in tf.range(steps):
            total += self.scale
        return {"total": total}


def write(path: str | pathlib.Path, scale: float = 1.0) -> None:
    """Writes one to `path`, a version directory; `saved_model.pb` appears last, as when pushed."""
    path = pathlib.Path(path)
    model = Model(scale)
    staging = path.with_name(f"staging-{path.name}")
    signatures = {"serving_default": model.serve, "embed": model.embed, "add": model.add}
    signatures |= {"spin": model.spin, "classify": model.classify, "regress": model.regress}
    tf.saved_model.save(model, str(staging), signatures=signatures)
    staging.rename(path)


if __name__ == "__main__":
    write(sys.argv[1], float(sys.argv[2]) if len(sys.argv) > 2 else 1.0)
