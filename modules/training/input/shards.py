"""The kept instances of a split, shuffled once, in shards of equal size (GZIP TFRecord).

Every shard but the last holds the same number of instances, so which batch comes from which
shard is arithmetic: any process can read any range of an epoch's batches (`batches.py`).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_transform as tft

from data.spec import Spec
from modules.training.input.records import kept_instances, naming_damaged

_BLOCK = 1024
_INDEX = "index.json"
_LENGTH_DIGITS = 8
_GZIP = tf.io.TFRecordOptions("GZIP", compression_level=1)
_PROGRESS = logging.getLogger("progress")


@dataclasses.dataclass(frozen=True)
class Shards:
    """Where the instances of a split are, and how an epoch is cut into batches.

    A unit is `shards_per_unit` shards whose instances are mixed and sorted by length.
    """

    paths: tuple[str, ...]
    num_instances: int
    split: str
    batch_size: int
    shard_instances: int
    """Of every shard but the last, which may be shorter; a multiple of `batch_size`."""
    shards_per_unit: int
    seed: int

    @property
    def num_batches(self) -> int:
        """Of every epoch. One batch may be short: it is of the last unit."""
        return -(-self.num_instances // self.batch_size)

    @property
    def num_full_shards(self) -> int:
        return self.num_instances // self.shard_instances

    @property
    def batches_per_unit(self) -> int:
        """Of every unit but the last. Ranges that end at multiples of it read nothing twice."""
        return self.shard_instances // self.batch_size * self.shards_per_unit


def write_shards(
    files: Sequence[str],
    transform_output: tft.TFTransformOutput,
    spec: Spec,
    split: str,
    folder: str,
    *,
    batch_size: int,
    seed: int,
    min_events: int = 0,
    min_targets: int = 1,
    batches_per_shard: int = 4,
    shards_per_unit: int = 4,
    shuffle_buffer: int = 16384,
) -> Shards:
    """One pass over the instances of a split, or none where `folder` has its shards already.

    What is written is a function of the arguments and the files. One process writes; others
    wait for it and call `load_shards`.

    Args:
      files: GZIP TFRecord files of transformed instances.
      split: 'train' or 'eval'; other targets (and for train, later events) are cut away.
      folder: `index.json` in it, written last, says that its shards are complete and what of.
        Shards of other arguments or files, or without an index, are written anew.
      min_events, min_targets: instances with fewer (after the cut) are left out.
      shuffle_buffer: instances in memory among which a shard's are drawn.

    Raises:
      ValueError: no instance is left, or a file is damaged (named).
    """
    about = {
        "files": hashlib.sha256(json.dumps(_identities(files)).encode()).hexdigest(),
        "spec": spec.fingerprint(),
        "split": split,
        "batch_size": batch_size,
        "seed": seed,
        "min_events": min_events,
        "min_targets": min_targets,
        "batches_per_shard": batches_per_shard,
        "shards_per_unit": shards_per_unit,
        "shuffle_buffer": shuffle_buffer,
    }
    index = _read_index(folder)
    if index and index["about"] == about and index["shards"] == _sizes(folder):
        return load_shards(folder)
    _clear(folder)
    blocks = kept_instances(
        files,
        transform_output,
        spec,
        split,
        block=_BLOCK,
        min_events=min_events,
        min_targets=min_targets,
    )
    shard_instances = batch_size * batches_per_shard
    num_kept = 0
    with naming_damaged(files):
        shuffled = _shuffled(_records(blocks, split), shard_instances, shuffle_buffer, seed)
        for number, records in enumerate(shuffled):
            _write(os.path.join(folder, f"shard-{number:06d}.gz"), records)
            num_kept += len(records)
    if not num_kept:
        raise ValueError(
            f"no instance to {split} on: none of {len(files)} files' has {min_events} events and"
            f" {min_targets} targets of the {split} split"
        )
    shape = {
        "num_instances": num_kept,
        "split": split,
        "batch_size": batch_size,
        "shard_instances": shard_instances,
        "shards_per_unit": shards_per_unit,
        "seed": seed,
    }
    _write_index(folder, {"about": about, "shape": shape, "shards": _sizes(folder)})
    return load_shards(folder)


def load_shards(folder: str) -> Shards:
    """The shards that `write_shards` has written to `folder`.

    Raises:
      FileNotFoundError: it holds none, or incomplete ones.
    """
    index = _read_index(folder)
    if index is None:
        raise FileNotFoundError(f"{folder}: no complete shards; `write_shards` makes them")
    paths = tuple(os.path.join(folder, name) for name in sorted(index["shards"]))
    return Shards(paths=paths, **index["shape"])


def split_length(records: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """A shard's records, string [n] -> (serialized instances string [n], events int64 [n])."""
    num_events = tf.strings.to_number(tf.strings.substr(records, 0, _LENGTH_DIGITS), tf.int64)
    # A length beyond any record's: the rest of it.
    return tf.strings.substr(records, _LENGTH_DIGITS, 2**31 - 1), num_events


def _with_length(serialized: tf.Tensor, num_events: tf.Tensor) -> tf.Tensor:
    """The number of events stands before each instance: sorting by it needs no parsing."""
    digits = tf.strings.as_string(num_events, width=_LENGTH_DIGITS, fill="0")
    return tf.strings.join([digits, serialized])


def _records(blocks: tf.data.Dataset, split: str) -> Iterator[np.ndarray]:
    @tf.autograph.experimental.do_not_convert
    def with_length(serialized, num_events, size):
        return _with_length(serialized, num_events), size

    num_read = num_kept = 0
    for records, size in blocks.map(with_length).prefetch(2):
        yield records.numpy()
        num_read += int(size)
        num_kept += len(records)
        _PROGRESS.info("input: %d instances read, %d to %s on", num_read, num_kept, split)


def _shuffled(
    blocks: Iterator[np.ndarray], size: int, buffer: int, seed: int
) -> Iterator[np.ndarray]:
    """Arrays of `size` records (the last may be shorter), each drawn from `buffer` or more."""
    random = np.random.default_rng(seed)
    pool = np.empty(0, object)
    for block in blocks:
        pool = np.concatenate([pool, block])
        if len(pool) >= buffer + size:
            pool = random.permutation(pool)
        while len(pool) >= buffer + size:
            yield pool[:size]
            pool = pool[size:]
    pool = random.permutation(pool)
    for start in range(0, len(pool), size):
        yield pool[start : start + size]


def _write(path: str, records: np.ndarray) -> None:
    with tf.io.TFRecordWriter(path, _GZIP) as writer:
        for record in records:
            writer.write(record)


def _identities(files: Sequence[str]) -> list[tuple[str, int, int]]:
    stats = ((path, tf.io.gfile.stat(path)) for path in sorted(files))
    return [(path, stat.length, stat.mtime_nsec) for path, stat in stats]


def _sizes(folder: str) -> dict[str, int]:
    paths = tf.io.gfile.glob(os.path.join(folder, "shard-*.gz"))
    return {os.path.basename(path): tf.io.gfile.stat(path).length for path in paths}


def _clear(folder: str) -> None:
    """The index first: without it, what remains is incomplete by definition."""
    tf.io.gfile.makedirs(folder)
    for name in (_INDEX, *_sizes(folder)):
        path = os.path.join(folder, name)
        if tf.io.gfile.exists(path):
            tf.io.gfile.remove(path)


def _read_index(folder: str) -> dict[str, Any] | None:
    try:
        with tf.io.gfile.GFile(os.path.join(folder, _INDEX)) as file:
            return json.loads(file.read())
    except tf.errors.NotFoundError:
        return None


def _write_index(folder: str, index: dict[str, Any]) -> None:
    path = os.path.join(folder, _INDEX)
    with tf.io.gfile.GFile(path + ".partial", "w") as file:
        file.write(json.dumps(index, indent=1))
    tf.io.gfile.rename(path + ".partial", path, overwrite=True)
