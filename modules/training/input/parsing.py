"""Serialized transformed instances -> ragged instances of one split -> padded batches."""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf
import tensorflow_transform as tft

from data.spec import Spec
from modules.features import (
    DOMAIN,
    HELD_OUT,
    Batch,
    Ragged,
    as_ragged,
    knowledge_features,
    pad,
    select_split,
)
from modules.training.input import users

_LENGTH_MULTIPLE = 8
_HELD_OUT_SHARE = 0.125


def parser(
    transform_output: tft.TFTransformOutput, spec: Spec, split: str
) -> Callable[[tf.Tensor], Ragged]:
    """A function from serialized instances, string [n], to the instances cut to `split`."""
    feature_spec = transform_output.transformed_feature_spec()
    keys = {"knowledge_user", *knowledge_features(spec)} if spec.knowledge is not None else set()
    keys |= {DOMAIN} if spec.domain is not None else set()
    if missing := sorted(keys - feature_spec.keys()):
        raise ValueError(
            f"Transform's output has no {', '.join(missing)}; its spec must have the same"
            " `knowledge` and `domain`, so run it again"
        )
    unused = {"user_id", "user_activity", "window_last"}
    unused |= {t.oracle_feature for t in spec.tasks}
    feature_spec = {k: v for k, v in feature_spec.items() if k not in unused}

    def parse(serialized: tf.Tensor) -> Ragged:
        features = tf.io.parse_example(serialized, feature_spec)
        return select_split(as_ragged(features, spec), spec, split)

    return parse


def padder(
    transform_output: tft.TFTransformOutput, spec: Spec, split: str, epoch: int | tf.Tensor
) -> Callable[[tf.Tensor], Batch]:
    """A function from serialized instances, string [n], to a batch of them, in that order.

    To train with `weighting: bilevel` it says which of them are of users held out: of three epochs
    or more, nobody is in the last third.
    """
    parse = parser(transform_output, spec, split)
    holds_out = split == "train" and spec.training.finetune.weighting == "bilevel"
    epochs = spec.training.finetune.epochs
    somebody_is = epoch < epochs - epochs // 3

    @tf.autograph.experimental.do_not_convert
    def padded(serialized: tf.Tensor) -> Batch:
        batch = pad(parse(serialized), spec, _LENGTH_MULTIPLE)
        if holds_out:
            of_user = users.place(serialized, transform_output, spec, users.HELD_OUT)
            batch[HELD_OUT] = (of_user < _HELD_OUT_SHARE) & somebody_is
        return batch

    return padded
