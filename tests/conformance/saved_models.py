"""The SavedModel that the conformance suite asks about: signatures of every kind TF Serving has.

`serving_default`: `x` float [N] -> `y` = factor · x + 2. `two`: `a` int64 [N, 2], `b` string [N]
-> `sum` int64 [N], `echo_bytes` = b, `label` string = 'even' or 'odd'. `classify`, `regress`:
`inputs` serialized Examples with float `x` and int64 `n` (default 0) -> `classes` [N, 2], `scores`
[N, 2] = (y, n); `outputs` [N, 1] = y + n. `scores_only`: without `classes`. `fails`: raises.
"""

import pathlib

import tensorflow as tf

FEATURES = {
    "x": tf.io.FixedLenFeature([], tf.float32),
    "n": tf.io.FixedLenFeature([], tf.int64, default_value=0),
}
EXAMPLES = [tf.TensorSpec([None], tf.string, name="inputs")]


class Model(tf.Module):
    def __init__(self, factor: float):
        super().__init__()
        self.factor = tf.Variable(factor)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, name="x")])
    def line(self, x):
        return {"y": self.factor * x + 2.0}

    @tf.function(
        input_signature=[
            tf.TensorSpec([None, 2], tf.int64, name="a"),
            tf.TensorSpec([None], tf.string, name="b"),
        ]
    )
    def two(self, a, b):
        total = tf.reduce_sum(a, axis=1)
        label = tf.where(total % 2 == 0, tf.constant("even"), tf.constant("odd"))
        return {"sum": total, "echo_bytes": b, "label": label}

    def _parse(self, inputs):
        parsed = tf.io.parse_example(inputs, FEATURES)
        return self.factor * parsed["x"] + 2.0, tf.cast(parsed["n"], tf.float32)

    @tf.function(input_signature=EXAMPLES)
    def classify(self, inputs):
        y, n = self._parse(inputs)
        classes = tf.tile(tf.constant([["y", "n"]]), [tf.shape(y)[0], 1])
        return {"classes": classes, "scores": tf.stack([y, n], axis=1)}

    @tf.function(input_signature=EXAMPLES)
    def scores_only(self, inputs):
        return {"scores": tf.stack(self._parse(inputs), axis=1)}

    @tf.function(input_signature=EXAMPLES)
    def regress(self, inputs):
        y, n = self._parse(inputs)
        return {"outputs": (y + n)[:, tf.newaxis]}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, name="x")])
    def fails(self, x):
        with tf.control_dependencies([tf.debugging.Assert(tf.reduce_all(x > 1e9), ["refused"])]):
            return {"y": tf.identity(x)}


def write(path: pathlib.Path, factor: float) -> None:
    model = Model(factor)
    names = ("two", "classify", "scores_only", "regress", "fails")
    signatures = {name: getattr(model, name) for name in names}
    tf.saved_model.save(model, str(path), signatures={"serving_default": model.line, **signatures})
