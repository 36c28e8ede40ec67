"""Dynamic tables: an id never seen before gets a row when it proves frequent, and loses it when
it stops coming. Memory is bounded whatever arrives.

Ids are *keys*: int64, with PAD, MASK and MISSING as in every table (`modules/preprocessing.py`
makes them). A table turns a batch's distinct keys into *slots*, rows of its `rows`:

    0 … 2                       PAD, MASK, MISSING
    3 … 3 + capacity - 1        private, of admitted keys: 3 + the key's place in the map
    the rest                    the tail: shared by hash, of all other keys

All is variables and core TensorFlow ops: a SavedModel with it loads in any TensorFlow Serving.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import tensorflow as tf

from data.channels import Dynamic
from modules.embeddings import adagrad, key_map, shard, sightings
from modules.embeddings.hashing import bucket
from modules.embeddings.initialization import table_seed
from modules.embeddings.table import NUM_RESERVED

_TAIL_STREAM = 4  # not the map's hashes: the ids of one bucket don't share a tail row
_CELLS_PER_SLOT = 4
_ADMITTED, _EVICTED, _REFUSED, _WINDOW = range(4)
_TOTALS, _TOLD = slice(0, 3), slice(4, 7)
"""Of the counters: what happened since the table was made; what `lifecycle` has told of that."""
_EVICTIONS_A_LIFE = 10
_KEYS = tf.TensorSpec([None], tf.int64)
_STEP = tf.TensorSpec([], tf.int64)


class Statistics(NamedTuple):
    """How a table stands and what happened since it was made; int64 scalars."""

    admitted: tf.Tensor
    evicted: tf.Tensor
    refused: tf.Tensor
    """Admissions for which there was no room; a key counts each time it comes."""
    occupied: tf.Tensor
    """Private rows in use."""
    tail_ids: tf.Tensor
    """About how many distinct keys used the tail lately (in the sketch's window)."""
    tail_collisions: tf.Tensor
    """How many of these shared a tail row with one before them, if spread evenly."""


def find_slots(stored: tf.Variable, keys: tf.Tensor, tail_rows: int) -> tf.Tensor:
    """Slots of keys; changes nothing.

    Args:
      stored: the map, see `key_map`.
      keys: int64 [n].

    Returns:
      int64 [n].
    """
    place = key_map.find(stored, keys)
    tail = bucket(keys, tail_rows, _TAIL_STREAM)
    capacity = stored.shape.num_elements()
    slots = NUM_RESERVED + tf.where(tf.equal(place, key_map.ABSENT), capacity + tail, place)
    return tf.where(keys < NUM_RESERVED, keys, slots)


class DynamicTable(tf.Module):
    """A dynamic table, in one process.

    Admission: a key's sightings, one a call of `resolve`, are counted in a sketch of 4 bytes a
    slot, halved after about `capacity` sightings of keys without a row. The key that reaches
    `admit_after` gets a free slot; its row starts as the tail row it had, so that nothing
    learned is lost, its optimizer state afresh. A key whose two buckets are full stays in the
    tail and tries again when it comes again: that begins when about 75% of the slots are taken,
    and 95% are reached. Eviction frees the slots of keys that didn't come for `evict_after`
    steps.

    Args:
      dim: width of a row.
      sizes: capacity, tail rows and policy, from the spec.
      seed, init_scale: of the initial rows, see `EmbeddingTable`.
      optimizer: of the rows.
    """

    def __init__(
        self,
        dim: int,
        name: str,
        sizes: Dynamic,
        seed: int = 0,
        init_scale: float = 0.05,
        optimizer: adagrad.AdagradKind = "rowwise_adagrad",
    ):
        super().__init__(name=name)
        self.dim = dim
        self.sizes = sizes
        buckets = -(-sizes.capacity // key_map.BUCKET)
        self.capacity = buckets * key_map.BUCKET
        self.num_rows = NUM_RESERVED + self.capacity + sizes.tail_rows
        self._seed, self._init_scale = table_seed(name, seed), init_scale
        self._optimizer = optimizer

        def variable(
            what: str, shape: Sequence[int], dtype: tf.DType, initial: float = 0
        ) -> tf.Variable:
            # A callable: a plan (`modules/training/planning`) asks for the shape only.
            return tf.Variable(
                lambda: tf.fill(shape, tf.constant(initial, dtype)),
                trainable=False,
                dtype=dtype,
                shape=shape,
                name=f"{name}/{what}",
            )

        state_shape = adagrad.state_shape(optimizer, self.num_rows, dim)
        self.keys = variable("keys", [buckets, key_map.BUCKET], tf.int64)
        self.last_seen = variable("last_seen", [self.capacity], tf.int32)
        self.rows = variable("rows", [self.num_rows, dim], tf.float32)
        self.state = variable("state", state_shape, tf.float32, adagrad.INITIAL_STATE)
        self.touched = variable("touched", [self.num_rows], tf.uint8)
        self.cells = variable("cells", [_CELLS_PER_SLOT * self.capacity], tf.uint8)
        self.counters = variable("counters", [_TOLD.stop], tf.int64)
        self._fill()

    @tf.function(autograph=False, input_signature=[])
    def _fill(self) -> None:
        shard.fill(self.rows, self._seed, self._init_scale, shard=0, num_shards=1)

    def resolve(self, keys: tf.Tensor, step: tf.Tensor, training: bool = True) -> tf.Tensor:
        """Slots of keys, until the next `evict`.

        Args:
          keys: int64 [n], distinct.
          step: int64 scalar, of training; never falls.
          training: counts the sighting, admits keys, and remembers the step.

        Returns:
          int64 [n]; distinct but for keys that share a tail row.
        """
        if training:
            return self._sight_and_admit(keys, step)
        return find_slots(self.keys, keys, self.sizes.tail_rows)

    def lookup(self, keys: tf.Tensor) -> tf.Tensor:
        """int64 [...] -> float32 [..., dim], as the table stands; what serving does."""
        slots = find_slots(self.keys, tf.reshape(keys, [-1]), self.sizes.tail_rows)
        # Not `gather`: a graph doesn't count what that reads among its variables.
        rows = tf.gather(self.rows, slots)
        return tf.reshape(rows, tf.concat([tf.shape(keys), [self.dim]], 0))

    def gather(self, slots: tf.Tensor) -> tf.Tensor:
        """int64 [n] -> float32 [n, dim]."""
        return shard.gather(self.rows, slots)

    def update(
        self, slots: tf.Tensor, grads: tf.Tensor, learning_rate: tf.Tensor | float
    ) -> tf.Operation | None:
        """One optimizer step. Gradients of keys that share a tail row are summed.

        Args:
          slots: int64 [n].
          grads: float [n, dim], zeros for PAD.
        """
        distinct, index = tf.unique(slots)
        summed = tf.math.unsorted_segment_sum(grads, index, tf.size(distinct))
        return shard.update(
            self.rows, self.state, self.touched, distinct, summed, learning_rate, self._optimizer
        )

    @tf.function(autograph=False, input_signature=[_STEP])
    def evict(self, step: tf.Tensor) -> tf.Tensor:
        """Frees the slots of keys not seen for more than `evict_after` steps; reads 12 bytes a
        slot, so call it every tenth of `evict_after` or so. Returns how many, int64."""
        limit = self.sizes.evict_after
        if limit is None:
            return tf.constant(0, tf.int64)

        idle = tf.cast(step, tf.int32) - self.last_seen.read_value()
        taken = tf.not_equal(tf.reshape(self.keys.read_value(), [-1]), key_map.FREE)
        slots = tf.where(taken & (idle > limit))[:, 0]
        count = tf.size(slots, tf.int64)
        key_map.write(self.keys, slots, tf.fill([count], _int64(key_map.FREE)))
        self._count({_EVICTED: count})
        return count

    def evict_in_time(self, step: tf.Tensor) -> None:
        """Evicts at every tenth of `evict_after` steps; to be called at each of them, before
        its keys are resolved."""
        limit = self.sizes.evict_after
        if limit is not None:
            period = max(1, limit // _EVICTIONS_A_LIFE)
            none = _int64(0)
            tf.cond(tf.equal(step % period, 0), lambda: self.evict(step), lambda: none)

    @tf.function(autograph=False, input_signature=[])
    def statistics(self) -> Statistics:
        """Totals and the present state; reads the sketch (4 bytes a slot)."""
        totals = self.counters.read_value()
        tail_ids = sightings.distinct(self.cells)
        rows = tf.cast(self.num_rows - NUM_RESERVED - self.capacity, tf.float32)
        # n keys on T rows take T · (1 - (1 - 1/T)^n) of them.
        used = -rows * tf.math.expm1(tail_ids * tf.math.log1p(-1.0 / rows))
        collisions = tf.maximum(tail_ids - used, 0.0)
        return Statistics(
            admitted=totals[_ADMITTED],
            evicted=totals[_EVICTED],
            refused=totals[_REFUSED],
            occupied=totals[_ADMITTED] - totals[_EVICTED],
            tail_ids=tf.cast(tf.round(tail_ids), tf.int64),
            tail_collisions=tf.cast(tf.round(collisions), tf.int64),
        )

    def lifecycle(self) -> dict[str, int]:
        """One line of a lifecycle report: what happened since the last one (also if that was in
        a process that ended and left a checkpoint), and how the table stands."""
        now = {name: int(value) for name, value in self.statistics()._asdict().items()}
        counters = self.counters.numpy()
        admitted, evicted, refused = (counters[_TOTALS] - counters[_TOLD]).tolist()
        counters[_TOLD] = counters[_TOTALS]
        self.counters.assign(counters)
        happened = {"admitted": admitted, "evicted": evicted, "refused": refused}
        standing = {name: now[name] for name in ("occupied", "tail_ids", "tail_collisions")}
        growth = {"growth": admitted - evicted, "capacity": self.capacity}
        return happened | growth | standing

    def restart_steps(self, step: int) -> None:
        """Steps are counted from zero again, which was `step` so far."""
        self.last_seen.assign_sub(tf.fill(self.last_seen.shape, tf.constant(step, tf.int32)))

    @property
    def num_bytes(self) -> int:
        """Of all its state: rows, optimizer state, map, sketch. It never grows."""
        return sum(v.shape.num_elements() * v.dtype.size for v in self.variables)

    @tf.function(autograph=False, input_signature=[_KEYS, _STEP])
    def _sight_and_admit(self, keys: tf.Tensor, step: tf.Tensor) -> tf.Tensor:
        slots = find_slots(self.keys, keys, self.sizes.tail_rows)
        first_of_tail = NUM_RESERVED + self.capacity
        private = tf.boolean_mask(slots, (slots >= NUM_RESERVED) & (slots < first_of_tail))
        self._see(private, step)
        in_tail = tf.where(slots >= first_of_tail)
        strangers = tf.gather(keys, in_tail[:, 0])
        count = sightings.sight(self.cells, strangers)
        self._admit(tf.boolean_mask(strangers, count >= self.sizes.admit_after), step)
        self._advance_window(tf.size(strangers, tf.int64))
        now = find_slots(self.keys, strangers, self.sizes.tail_rows)
        return tf.tensor_scatter_nd_update(slots, in_tail, now)

    def _admit(self, keys: tf.Tensor, step: tf.Tensor) -> None:
        """Gives free slots to keys, int64 [n], distinct and absent, until no more find one."""

        def place(waiting: tf.Tensor, _: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            places = key_map.free_slots(self.keys, waiting)
            placed = tf.not_equal(places, key_map.ABSENT)
            admitted, places = tf.boolean_mask(waiting, placed), tf.boolean_mask(places, placed)
            slots = NUM_RESERVED + places
            tail = find_slots(self.keys, admitted, self.sizes.tail_rows)
            initial = tf.fill(
                tf.concat([tf.shape(slots), self.state.shape[1:]], 0),
                tf.constant(adagrad.INITIAL_STATE),
            )
            writes = [
                self._see(slots, step),
                self.rows.scatter_update(tf.IndexedSlices(self.gather(tail), slots)),
                self.state.scatter_update(tf.IndexedSlices(initial, slots)),
                self.touched.scatter_update(
                    tf.IndexedSlices(tf.fill(tf.shape(slots), _uint8(shard.TOUCHED)), slots)
                ),
                key_map.write(self.keys, places, admitted),
            ]
            with tf.control_dependencies(writes):  # before the next round
                return tf.boolean_mask(waiting, ~placed), tf.size(places)

        refused, _ = tf.while_loop(
            lambda waiting, placed: (tf.size(waiting) > 0) & (placed > 0),
            place,
            [keys, tf.constant(1)],
            shape_invariants=[tf.TensorShape([None]), tf.TensorShape([])],
            parallel_iterations=1,
        )
        count = tf.size(refused, tf.int64)
        self._count({_ADMITTED: tf.size(keys, tf.int64) - count, _REFUSED: count})

    def _see(self, slots: tf.Tensor, step: tf.Tensor) -> tf.Tensor:
        steps = tf.fill(tf.shape(slots), tf.cast(step, tf.int32))
        return self.last_seen.scatter_update(tf.IndexedSlices(steps, slots - NUM_RESERVED))

    def _advance_window(self, sighted: tf.Tensor) -> None:
        """Halves the sketch when `capacity` sightings are in it, or more where that would be
        fewer batches than twice what an admission takes."""
        self._count({_WINDOW: sighted})
        total = self.counters.read_value()[_WINDOW]

        def end() -> tf.Tensor:
            ended = [sightings.halve(self.cells), self._count({_WINDOW: -total})]
            with tf.control_dependencies(ended):
                return tf.constant(True)

        full = tf.maximum(_int64(self.capacity), 2 * self.sizes.admit_after * sighted)
        tf.cond(total >= full, end, lambda: tf.constant(False))

    def _count(self, added: Mapping[int, tf.Tensor]) -> tf.Operation:
        places = tf.constant(list(added), tf.int64)
        return self.counters.scatter_add(tf.IndexedSlices(tf.stack(list(added.values())), places))


def _int64(value: int) -> tf.Tensor:
    return tf.constant(value, tf.int64)


def _uint8(value: int) -> tf.Tensor:
    return tf.constant(value, tf.uint8)
