"""Writes small real SavedModels: `python tests/serving/saved_models.py DIR [SCALE]`.

Features of an instance: `user_id` bytes, `sequence_item` int64 [L], `candidate_price` float [K].
`serving_default` -> `click` [B, K] = sigmoid(scale · (price + sum of items / 1000)), padded with
0, `candidates` [B] their number, `vip` [B], `user_id` [B]; `score_and_embed` and `score` are its
two halves (`CONTRACT`); `embed` -> `embedding` [B, 4] = scale · (sum, count, -sum, 2 · sum of the
items) / 1000, `user_id`. `add` -> `sum`, `difference` [N] of `x`, `y` [N], times scale.
`pool` -> `total` [B], `kept` [B, L], `length` [B]: the first `lengths` of `values`, times scale.
`classify` -> `classes`, `scores` [B, 2] ("no", "yes") of `vip`; `regress` -> `outputs` [B, 1], the
first column of `embedding`. `spin` keeps a core busy for about `steps` · 10 µs.
"""

import json
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
        answer = self.score_and_embed(examples)
        del answer["embedding"]
        return answer

    @tf.function(input_signature=[EXAMPLES])
    def score_and_embed(self, examples):
        embedding = self.embed(examples)["embedding"]
        return self.score(examples, embedding) | {"embedding": embedding}

    @tf.function(input_signature=[EXAMPLES, tf.TensorSpec([None, 4], tf.float32, name="embedding")])
    def score(self, examples, embedding):
        parsed = tf.io.parse_example(examples, FEATURES)
        logits = self.scale * parsed["candidate_price"] + embedding[:, :1]
        return {
            "click": tf.ragged.map_flat_values(tf.sigmoid, logits).to_tensor(),
            "candidates": tf.cast(parsed["candidate_price"].row_lengths(), tf.int64),
            "vip": tf.sigmoid(embedding[:, 0]),
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

    @tf.function(
        input_signature=[
            tf.TensorSpec([None, None], tf.float32, name="values"),
            tf.TensorSpec([None], tf.int64, name="lengths"),
        ]
    )
    def pool(self, values, lengths):
        kept = self.scale * tf.where(tf.sequence_mask(lengths, tf.shape(values)[1]), values, 0.0)
        return {"total": tf.reduce_sum(kept, axis=1), "kept": kept, "length": lengths}

    @tf.function(input_signature=[tf.TensorSpec([], tf.int64, name="steps")])
    def spin(self, steps):
        total = tf.constant(0.0)
        for _ in tf.range(steps):
            total += self.scale
        return {"total": total}


CONTRACT = {
    "batching": {
        "serving_default": {"trim": {"click": "candidates"}},
        "score_and_embed": {"trim": {"click": "candidates"}},
        "score": {"trim": {"click": "candidates"}},
        "pool": {"pad": ["values"], "trim": {"kept": "length"}},
    },
    "users": {
        "signature": "serving_default",
        "encode": "score_and_embed",
        "score": "score",
        "user_features": ["sequence_item"],
        "tower_features": [],
        "bypass": ["target_position"],
    },
}


def write(path: str | pathlib.Path, scale: float = 1.0) -> None:
    """Writes one to `path`, a version directory; `saved_model.pb` appears last, as when pushed."""
    path = pathlib.Path(path)
    model = Model(scale)
    staging = path.with_name(f"staging-{path.name}")
    signatures = {"serving_default": model.serve}
    for name in ("score_and_embed", "score", "embed", "add", "pool", "classify", "regress", "spin"):
        signatures[name] = getattr(model, name)
    tf.saved_model.save(model, str(staging), signatures=signatures)
    (staging / "assets.extra").mkdir()
    (staging / "assets.extra" / "serving.json").write_text(json.dumps(CONTRACT))
    staging.rename(path)


class Waiting(tf.Module):
    """Its requests last as long as a test wants."""

    @tf.function(input_signature=[tf.TensorSpec([], tf.string, name="path")])
    def wait(self, path):
        """Writes `path`.started, and answers `path` once there is `path`.end."""
        tf.io.write_file(path + ".started", "")
        end = path + ".end"
        while tf.size(tf.io.matching_files(end)) == 0:
            pass
        return {"path": path}


def write_waiting(path: pathlib.Path) -> None:
    """Writes `Waiting` with its signature `wait`."""
    model = Waiting()
    tf.saved_model.save(model, str(path), signatures={"wait": model.wait})


if __name__ == "__main__":
    write(sys.argv[1], float(sys.argv[2]) if len(sys.argv) > 2 else 1.0)
