"""From the events a target sees to the user representation H. SuperMoE's eq. 8: their maximum."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf


class Pooling(NamedTuple):
    """whole: (h [B, L, D], mask [B, L]) -> [B, D]; prefixes: the same of every prefix,
    -> [B, L, D], where padding only follows what is visible."""

    whole: Callable[[tf.Tensor, tf.Tensor], tf.Tensor]
    prefixes: Callable[[tf.Tensor, tf.Tensor], tf.Tensor]


def max_pool(h_BLD: tf.Tensor, mask_BL: tf.Tensor) -> tf.Tensor:
    """H = MaxPooling(h_o) over visible positions (SuperMoE eq. 8).

    Args:
      h_BLD: float.
      mask_BL: bool, False for padding.

    Returns:
      [B, D]; zeros where nothing is visible.
    """
    pooled_BD = tf.reduce_max(_hide(h_BLD, mask_BL), axis=1)
    any_B1 = tf.reduce_any(mask_BL, axis=1, keepdims=True)
    return tf.where(any_B1, pooled_BD, tf.zeros([], h_BLD.dtype))


def running_max(h_BLD: tf.Tensor, mask_BL: tf.Tensor) -> tf.Tensor:
    """`max_pool` of every prefix: out[:, i] = max_pool(h[:, :i+1], mask[:, :i+1]).

    ceil(log2 L) passes over the data forward; the gradient of a position goes to the first
    event that holds its maximum, in one pass.

    Args: as in `max_pool`.

    Returns:
      [B, L, D]; zeros up to the first visible position.
    """

    @tf.custom_gradient
    def pooled(h_BLD):
        hidden_BLD = _hide(h_BLD, mask_BL)
        best_BLD = _cumulative_max(hidden_BLD, h_BLD.dtype.min)
        seen_BL1 = tf.cumsum(tf.cast(mask_BL, tf.int32), axis=1)[..., tf.newaxis] > 0

        def gradient(dy_BLD):
            before = _shift(best_BLD, 1, h_BLD.dtype.min)
            first_BL1 = seen_BL1 & (tf.cumsum(tf.cast(seen_BL1, tf.int32), axis=1) == 1)
            record_BLD = (best_BLD > before) | first_BL1
            position = tf.range(tf.shape(h_BLD)[1])[:, tf.newaxis]
            holder_BLD = _cumulative_max(tf.where(record_BLD, position, -1), -1)
            return _add_at(dy_BLD, holder_BLD)

        return tf.where(seen_BL1, best_BLD, tf.zeros([], h_BLD.dtype)), gradient

    return pooled(h_BLD)


def _hide(h_BLD: tf.Tensor, mask_BL: tf.Tensor) -> tf.Tensor:
    return tf.where(mask_BL[..., tf.newaxis], h_BLD, h_BLD.dtype.min)


def _shift(x_BLD: tf.Tensor, by: tf.Tensor, fill: float) -> tf.Tensor:
    """Moves values `by` places up the sequence; keeps the shape, so that XLA can have it."""
    position = tf.range(tf.shape(x_BLD)[1])[:, tf.newaxis]
    return tf.where(position >= by, tf.roll(x_BLD, by, axis=1), tf.cast(fill, x_BLD.dtype))


def _cumulative_max(x_BLD: tf.Tensor, lowest: float) -> tf.Tensor:
    """Running maximum along axis 1 by doubling: after step s each place covers 2^s of them."""
    _, best_BLD = tf.while_loop(
        lambda by, _: by < tf.shape(x_BLD)[1],
        lambda by, best: (2 * by, tf.maximum(best, _shift(best, by, lowest))),
        (tf.constant(1), x_BLD),
        shape_invariants=(tf.TensorShape([]), x_BLD.shape),
    )
    return best_BLD


def _add_at(values_BLD: tf.Tensor, place_BLD: tf.Tensor) -> tf.Tensor:
    """out[b, place[b, l, d], d] += values[b, l, d]; a negative place is dropped."""
    B, L, D = tf.unstack(tf.shape(values_BLD))
    row = tf.range(B)[:, tf.newaxis, tf.newaxis]
    flat = (row * L + place_BLD) * D + tf.range(D)
    summed = tf.math.unsorted_segment_sum(
        tf.reshape(values_BLD, [-1]),
        tf.reshape(tf.where(place_BLD >= 0, flat, -1), [-1]),
        B * L * D,
    )
    return tf.reshape(summed, [B, L, D])


def mean_pool(h_BLD: tf.Tensor, mask_BL: tf.Tensor) -> tf.Tensor:
    """The mean over visible positions, [B, D]; zeros where nothing is visible."""
    visible_BL1 = tf.cast(mask_BL, h_BLD.dtype)[..., tf.newaxis]
    count_B1 = tf.reduce_sum(visible_BL1, axis=1)
    return tf.math.divide_no_nan(tf.reduce_sum(h_BLD * visible_BL1, axis=1), count_B1)


def running_mean(h_BLD: tf.Tensor, mask_BL: tf.Tensor) -> tf.Tensor:
    """`mean_pool` of every prefix, [B, L, D]."""
    visible_BL1 = tf.cast(mask_BL, h_BLD.dtype)[..., tf.newaxis]
    count_BL1 = tf.cumsum(visible_BL1, axis=1)
    return tf.math.divide_no_nan(tf.cumsum(h_BLD * visible_BL1, axis=1), count_BL1)


def last(h_BLD: tf.Tensor, mask_BL: tf.Tensor) -> tf.Tensor:
    """The newest visible position, [B, D]; zeros where nothing is visible."""
    place_BL = tf.range(tf.shape(mask_BL)[1]) * tf.cast(mask_BL, tf.int32)
    newest_BD = tf.gather(h_BLD, tf.reduce_max(place_BL, axis=1), batch_dims=1)
    return tf.where(tf.reduce_any(mask_BL, 1, keepdims=True), newest_BD, tf.zeros([], h_BLD.dtype))


def ends(h_BLD: tf.Tensor, mask_BL: tf.Tensor) -> tf.Tensor:
    """The first position plus the newest visible one (PeterRec eq. 6), [B, D]."""
    return h_BLD[:, 0] + last(h_BLD, mask_BL)


def _halves(first: Pooling, second: Pooling) -> Pooling:
    """One way for the first half of H's dimensions, another for the others."""

    def whole(h_BLD: tf.Tensor, mask_BL: tf.Tensor) -> tf.Tensor:
        one, two = _cut(h_BLD)
        return tf.concat([first.whole(one, mask_BL), second.whole(two, mask_BL)], axis=-1)

    def prefixes(h_BLD: tf.Tensor, mask_BL: tf.Tensor) -> tf.Tensor:
        one, two = _cut(h_BLD)
        return tf.concat([first.prefixes(one, mask_BL), second.prefixes(two, mask_BL)], axis=-1)

    return Pooling(whole, prefixes)


def _cut(h_BLD: tf.Tensor) -> list[tf.Tensor]:
    half = h_BLD.shape[-1] // 2
    return tf.split(h_BLD, [half, h_BLD.shape[-1] - half], axis=-1)


MAX = Pooling(max_pool, running_max)
MEAN = Pooling(mean_pool, running_mean)
LAST = Pooling(last, lambda h_BLD, mask_BL: h_BLD)
ENDS = Pooling(ends, lambda h_BLD, mask_BL: h_BLD[:, :1] + h_BLD)
MAX_MEAN = _halves(MAX, MEAN)
"""Whether something happened, and how much of what did."""
POOLINGS = {"max": MAX, "mean": MEAN, "max_mean": MAX_MEAN}
"""What `model.pooling` names."""
