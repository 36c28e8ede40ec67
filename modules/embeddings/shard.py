"""Operations on one shard of a large embedding table.

A shard of a table of N rows holds the rows r with r % num_shards == shard, at r // num_shards, in
three resource variables on one device, where all of its work is done:

    rows     [n, dim]            float32; or float16 or bfloat16, then rounded stochastically
    state    [n] or [n, dim]     float32, row-wise Adagrad's or Adagrad's
    touched  [n]                 CLEAN, TOUCHED or SAVING; uint8, or what else holds 2

The functions emit operations with explicit order. They work in a `tf.function` (also where the
shard lives on another process' device) and in a TF1 graph (where `==` compares tensor objects:
hence tf.equal), eagerly too. None locks: two updates
of float32 rows may run at once (each element is added to, as in Hogwild), but `begin_save` and
`end_save` rewrite all flags and must not run beside an `update`.
"""

from __future__ import annotations

import tensorflow as tf

from modules.embeddings import adagrad, rounding
from modules.embeddings.initialization import initial_rows

CLEAN = 0
"""As initial or as in the newest checkpoint."""
TOUCHED = 1
"""Updated since."""
SAVING = 2
"""Updated before the save under way, and not since."""

FILL_CHUNK = 1 << 16
"""Rows initialised at a time: bounds the memory of a fill beside the table."""

_SAVED = ("ids", "rows", "state")


def shard_rows(num_rows: int, shard: int, num_shards: int) -> int:
    """How many of a table's rows a shard holds."""
    return (num_rows - shard + num_shards - 1) // num_shards


def fill(
    rows: tf.Variable, seed: int, scale: float, shard: int, num_shards: int
) -> tf.Operation | None:
    """Writes the initial values of every row (`initialization.initial_rows`)."""
    count, dim = rows.shape

    def write(low: tf.Tensor) -> tuple[tf.Tensor]:
        local = tf.range(low, tf.minimum(low + FILL_CHUNK, count))
        values = initial_rows(local * num_shards + shard, dim, scale, seed)
        with tf.control_dependencies([_put(rows, local, tf.cast(values, rows.dtype))]):
            return (low + FILL_CHUNK,)

    with tf.device(rows.device):
        start = tf.constant(0, tf.int64)
        done = tf.while_loop(lambda low: low < count, write, [start], parallel_iterations=1)
        return tf.group(done)


def allocate(rows: tf.Variable, count: tf.Tensor) -> tf.Operation | None:
    """Gives a variable that has no value yet its memory, unwritten: `fill` comes next.

    Args:
      count: int32 scalar, the shard's rows, as a tensor that no optimizer can know beforehand. A
        constant would be folded: the shard would be in memory twice.
    """
    with tf.device(rows.device):
        shape = tf.stack([count, rows.shape[1]])
        return rows.assign(tf.raw_ops.Empty(shape=shape, dtype=rows.dtype), read_value=False)


def reset(state: tf.Variable, touched: tf.Variable, count: tf.Tensor) -> tf.Operation | None:
    """The state's initial value, and no row touched. `count`: as for `allocate`."""
    with tf.device(state.device):
        shape = tf.stack([count, *state.shape[1:]])
        initial = tf.fill(shape, tf.constant(adagrad.INITIAL_STATE, tf.float32))
        clean = tf.fill([count], tf.constant(CLEAN, touched.dtype))
        return tf.group(
            state.assign(initial, read_value=False), touched.assign(clean, read_value=False)
        )


def gather(rows: tf.Variable, ids: tf.Tensor) -> tf.Tensor:
    """Reads rows: local int32 or int64 [n] -> float32 [n, dim]."""
    with tf.device(rows.device):
        return tf.cast(_get(rows, ids), tf.float32)


def update(
    rows: tf.Variable,
    state: tf.Variable,
    touched: tf.Variable,
    ids: tf.Tensor,
    grads: tf.Tensor,
    learning_rate: tf.Tensor | float,
    optimizer: adagrad.AdagradKind = "rowwise_adagrad",
) -> tf.Operation | None:
    """One step of `optimizer` for the given rows.

    Args:
      ids: local int32 or int64 [n], distinct.
      grads: [n, dim], any float type; exact zeros for the table's row 0 (PAD), which then keeps
        its value, as would any row.
    """
    with tf.device(rows.device):
        grads = tf.cast(grads, tf.float32)
        added = _scatter("ResourceScatterAdd", state, ids, adagrad.squared(grads, optimizer))
        with tf.control_dependencies([added]):
            step = adagrad.step(grads, _get(state, ids), learning_rate, adagrad.EPSILON)
        if rows.dtype == tf.float32:
            moved = _scatter("ResourceScatterSub", rows, ids, step)
        else:
            exact = tf.cast(_get(rows, ids), tf.float32) - step
            moved = _put(rows, ids, rounding.stochastic(exact, rows.dtype))
        marks = tf.fill(tf.shape(ids), tf.constant(TOUCHED, touched.dtype))
        with tf.control_dependencies([moved]):  # a mark tells of values that are there
            return tf.group(_put(touched, ids, marks))


def begin_save(touched: tf.Variable) -> tf.Operation | None:
    """TOUCHED -> SAVING. Flags of a save that never ended stay SAVING: they are saved again."""
    return _replace(touched, TOUCHED, tf.constant(SAVING, touched.dtype))


def save_chunk(
    rows: tf.Variable,
    state: tf.Variable,
    touched: tf.Variable,
    low: tf.Tensor,
    high: tf.Tensor,
    prefix: tf.Tensor,
    shard: int,
    num_shards: int,
) -> tf.Tensor:
    """Writes those of the local rows [low, high) that aren't CLEAN, as a TensorBundle at `prefix`:
    `ids` int64 [k] (numbers in the whole table), `rows` float32 [k, dim], `state` float32.

    A row touched again while the save is under way is written too (with its newest values): it
    may have been touched before the save as well. It stays TOUCHED for the next one.

    Args:
      low, high: int64 scalars; the memory needed beside the shard is that of high - low rows.
      prefix: string scalar; its folder must exist.

    Returns:
      int64 scalar k. Nothing is written when k is 0.
    """
    with tf.device(rows.device):
        flags = _get(touched, tf.range(low, high))
        local = low + tf.where(tf.not_equal(flags, CLEAN))[:, 0]
        count = tf.size(local, tf.int64)

        def write() -> tf.Tensor:
            values = [
                local * num_shards + shard,
                tf.cast(_get(rows, local), tf.float32),
                _get(state, local),
            ]
            saved = tf.raw_ops.SaveV2(
                prefix=prefix, tensor_names=_SAVED, shape_and_slices=[""] * 3, tensors=values
            )
            with tf.control_dependencies([saved]):
                return tf.identity(count)

        return tf.cond(count > 0, write, lambda: tf.identity(count))


def end_save(touched: tf.Variable, ok: tf.Tensor | bool) -> tf.Operation | None:
    """SAVING -> CLEAN if the checkpoint is complete, else -> TOUCHED: nothing is lost."""
    flag = tf.where(ok, tf.constant(CLEAN, touched.dtype), tf.constant(TOUCHED, touched.dtype))
    return _replace(touched, SAVING, flag)


def restore_chunk(
    rows: tf.Variable, state: tf.Variable | None, prefix: tf.Tensor, shard: int, num_shards: int
) -> tf.Operation | None:
    """Reads back a chunk written by any shard of any number of shards; takes what is its own.

    Args:
      state: None for rows that aren't trained.

    Raises:
      tf.errors.InvalidArgumentError: the chunk's rows or state have another shape: the table's
        dim or its optimizer was another one.
      tf.errors.NotFoundError, DataLossError: the chunk is not there or damaged.
    """
    with tf.device(rows.device):
        ids, values, states = tf.raw_ops.RestoreV2(
            prefix=prefix,
            tensor_names=_SAVED,
            shape_and_slices=[""] * 3,
            dtypes=[tf.int64, tf.float32, tf.float32],
        )
        ids = tf.ensure_shape(ids, [None])
        values = tf.ensure_shape(values, [None, *rows.shape[1:]])
        own = tf.where(tf.equal(ids % num_shards, shard))[:, 0]
        local = tf.gather(ids, own) // num_shards
        restored = _put(rows, local, tf.cast(tf.gather(values, own), rows.dtype))
        if state is None:
            return restored
        states = tf.ensure_shape(states, [None, *state.shape[1:]])
        return tf.group(restored, _put(state, local, tf.gather(states, own)))


def _replace(touched: tf.Variable, old: int, new: tf.Tensor) -> tf.Operation | None:
    with tf.device(touched.device):
        flags = tf.identity(touched)
        return touched.assign(tf.where(tf.equal(flags, old), new, flags), read_value=False)


def _get(variable: tf.Variable, ids: tf.Tensor) -> tf.Tensor:
    # Not tf.gather: its gradient would be taped; and in place, without reading the whole variable.
    return tf.raw_ops.ResourceGather(resource=variable.handle, indices=ids, dtype=variable.dtype)


def _put(variable: tf.Variable, ids: tf.Tensor, values: tf.Tensor) -> tf.Operation | None:
    return _scatter("ResourceScatterUpdate", variable, ids, values)


def _scatter(
    name: str, variable: tf.Variable, ids: tf.Tensor, values: tf.Tensor
) -> tf.Operation | None:
    """Emits one of the in-place operations. None when eager: it has already run."""
    return getattr(tf.raw_ops, name)(resource=variable.handle, indices=ids, updates=values)
