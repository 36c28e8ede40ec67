"""Tiny evaluation instances (docs/contracts.md) and a real SavedModel that scores them.

The model's answers are features of the instance, so that a test knows them: `click` is the
candidate's `price` to the power of `sharpness`, `rating` a number and `kind` three classes made
of it; `vip` is a function of the number of events.
"""

from __future__ import annotations

import pathlib

import numpy as np
import tensorflow as tf

from data.spec import Spec, parse_spec

EXAMPLES = tf.TensorSpec([None], tf.string, name="examples")


def small_spec(**changes) -> Spec:
    raw = {
        "name": "tiny",
        "source": {"format": "tabular", "path": "events.parquet"},
        "channels": [
            {"name": "item", "scope": "sequence", "kind": "id", "rows": 16},
            {"name": "price", "scope": "candidate", "kind": "dense"},
        ],
        "tasks": [
            {
                "name": "click",
                "label": "clicked",
                "oracle": "p_click",
                "thresholds": {"min_auc": 0.6, "min_gauc": 0.55},
            },
            {"name": "kind", "label": "kind", "type": "multiclass", "classes": ["a", "b", "c"]},
            {"name": "rating", "label": "rating", "type": "regression"},
            {"name": "vip", "label": "vip", "per": "user"},
        ],
        "training": {"pretrain": {"epochs": 0}},
        "evaluation": {"activity_edges": [10, 20]},
    }
    return parse_spec(raw | changes)


class Targets:
    """Made-up users with their targets, as flat arrays over targets."""

    def __init__(self, num_users: int = 300, seed: int = 0):
        rng = np.random.default_rng(seed)
        self.activity = rng.integers(0, 30, num_users)
        count = rng.integers(1, 12, num_users)
        n = count.sum()
        self.user = np.repeat(np.arange(num_users), count)
        self.is_eval = rng.random(n) < 0.8
        self.oracle = rng.beta(2, 2, n).astype(np.float32)
        noisy = self.oracle + 0.15 * rng.standard_normal(n)
        self.price = np.clip(np.round(noisy, 2), 0.01, 0.99).astype(np.float32)  # With ties.
        self.click = (rng.random(n) < self.oracle).astype(np.float32)
        self.click[rng.random(n) < 0.1] = np.nan
        self.rating = (self.price + rng.standard_normal(n)).astype(np.float32)
        self.kind = np.where(rng.random(n) < 0.7, _kind(self.price), 0).astype(np.float32)
        # The user's last target is the one of per-user tasks; some users have no such label.
        self.is_last = np.r_[self.user[1:] != self.user[:-1], True]
        self.vip = np.full(n, np.nan, np.float32)
        vip = rng.random(num_users) < (self.activity + 5) / 40
        self.vip[self.is_last] = np.where(rng.random(num_users) < 0.9, vip, np.nan)
        for label in (self.click, self.rating, self.kind):
            label[self.is_last] = np.nan

    def write(self, folder: pathlib.Path, compressed: bool = True) -> None:
        """Two windows for each third user, as `Split-eval/data.gz`."""
        (folder / "Split-eval").mkdir(parents=True)
        options = tf.io.TFRecordOptions("GZIP" if compressed else "")
        path = str(folder / "Split-eval" / "data_tfrecord-00000-of-00001.gz")
        with tf.io.TFRecordWriter(path, options) as writer:
            for user in range(len(self.activity)):
                own = np.flatnonzero(self.user == user)
                cut = len(own) // 2 if user % 3 == 0 else 0
                for window in (own[:cut], own[cut:]):
                    if len(window):
                        writer.write(self._instance(user, window))

    def _instance(self, user: int, rows: np.ndarray) -> bytes:
        features = {
            "user_id": _bytes([b"u%d" % user]),
            "user_activity": _ints([self.activity[user]]),
            "sequence_length": _ints([self.activity[user]]),
            "sequence_item": _ints(range(self.activity[user])),
            "target_position": _ints([self.activity[user]] * len(rows)),
            "target_split": _ints(self.is_eval[rows]),
            "candidate_price": _floats(self.price[rows]),
            "label_click": _floats(self.click[rows]),
            "oracle_click": _floats(self.oracle[rows]),
            "label_kind": _floats(self.kind[rows]),
            "label_rating": _floats(self.rating[rows]),
            "label_vip": _floats(self.vip[rows]),
        }
        return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()


class _Model(tf.Module):
    def __init__(self, flipped: bool):
        super().__init__()
        self.flipped = tf.constant(flipped)

    @tf.function(input_signature=[EXAMPLES])
    def serve(self, examples):
        parsed = tf.io.parse_example(
            examples,
            {
                "user_id": tf.io.FixedLenFeature([], tf.string),
                "sequence_length": tf.io.FixedLenFeature([], tf.int64),
                "candidate_price": tf.io.RaggedFeature(tf.float32),
            },
        )
        price = parsed["candidate_price"]
        click = tf.cond(self.flipped, lambda: 1.0 - price, lambda: price)
        place = tf.cast(price.values * 3.0, tf.int32)
        kind = price.with_values(tf.one_hot(place, 3, on_value=0.8, off_value=0.1))
        return {
            "click": click.to_tensor(),
            "kind": kind.to_tensor(),
            "rating": price.to_tensor(),
            "vip": tf.cast(parsed["sequence_length"] + 1, tf.float32) / 40.0,
            "user_id": parsed["user_id"],
        }


def write_model(folder: pathlib.Path, flipped: bool = False) -> None:
    """A TFX Model artifact's content; `flipped` makes `click` worse on purpose."""
    model = _Model(flipped)
    path = str(folder / "Format-Serving")
    tf.saved_model.save(model, path, signatures={"serving_default": model.serve})


def _kind(price: np.ndarray) -> np.ndarray:
    return (price * 3.0).astype(np.int32)


def _bytes(values) -> tf.train.Feature:
    return tf.train.Feature(bytes_list=tf.train.BytesList(value=values))


def _ints(values) -> tf.train.Feature:
    return tf.train.Feature(int64_list=tf.train.Int64List(value=[int(v) for v in values]))


def _floats(values) -> tf.train.Feature:
    return tf.train.Feature(float_list=tf.train.FloatList(value=values))
