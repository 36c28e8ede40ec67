"""A small SavedModel that takes added tasks, with answers that are easily worked out.

`added_tasks(examples, slope [T, 2], extra [T, X])`: with p a candidate's price, n the user's number
of items and e_t the sum of extra, `impression` [B, K, T] = slope_t0 · p + slope_t1 · n + e_t,
padded with 0, and `user` [B, T] = slope_t1 · n + e_t; `candidates` [B], `user_id` [B].
"""

import json
import pathlib

import numpy as np
import tensorflow as tf

from tests.serving.saved_models import EXAMPLES, FEATURES

BACKBONE = "0123456789abcdef"
CONTRACT = {
    "batching": {"added_tasks": {"trim": {"impression": "candidates"}}},
    "added_tasks": {
        "signature": "added_tasks",
        "backbone": BACKBONE,
        "outputs": {"impression": "impression", "user": "user"},
    },
}


class Model(tf.Module):
    @tf.function(
        input_signature=[
            EXAMPLES,
            tf.TensorSpec([None, 2], tf.float32, name="slope"),
            tf.TensorSpec([None, None], tf.float32, name="extra"),
        ]
    )
    def added_tasks(self, examples, slope, extra):
        parsed = tf.io.parse_example(examples, FEATURES)
        prices = parsed["candidate_price"]
        count = tf.cast(parsed["sequence_item"].row_lengths(), tf.float32)
        user = count[:, tf.newaxis] * slope[:, 1] + tf.reduce_sum(extra, axis=1)
        number = tf.cast(prices.row_lengths(), tf.int64)
        padded = prices.to_tensor()
        answers = padded[..., tf.newaxis] * slope[:, 0] + user[:, tf.newaxis]
        real = tf.sequence_mask(number, tf.shape(padded)[1])[..., tf.newaxis]
        return {
            "impression": tf.where(real, answers, 0.0),
            "user": user,
            "candidates": number,
            "user_id": parsed["user_id"],
        }


def write(path: pathlib.Path) -> None:
    model = Model()
    tf.saved_model.save(model, str(path), signatures={"added_tasks": model.added_tasks})
    (path / "assets.extra").mkdir()
    (path / "assets.extra" / "serving.json").write_text(json.dumps(CONTRACT))


def write_task(folder, name, slope, extra=(0.0,), per="impression", file=None, **changes):
    """A bundle, complete or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    about = {"name": name, "per": per, "backbone": BACKBONE} | changes
    path = folder / f"{file or name}.npz"
    with path.with_suffix(".partial").open("wb") as stream:
        np.savez(
            stream,
            task=np.array(json.dumps(about)),
            slope=np.asarray(slope, np.float32),
            extra=np.asarray(extra, np.float32),
        )
    path.with_suffix(".partial").rename(path)
    return path
