"""The kept instances of a split, shuffled once, in shards of equal size.

Every shard but the last holds the same number of instances, so which batch comes from which
shard is arithmetic: any process can read any range of an epoch's batches (`batches.py`).

A shard is one gzipped tf.train.Example: `instance` (bytes [n], transformed instances as Transform
serialized them) and `num_events` (int64 [n], so that sorting by it needs no parsing). It is read
whole, against a checksum in `index.json`. Not a TFRecord file: the error of a damaged one doesn't
say which file it is, and without errors (`ignore_errors`) a missing one is tried for ever.
"""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import json
import logging
import os
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_transform as tft

from data.spec import Spec
from modules.training.input.records import kept_instances, naming_damaged

_BLOCK = 1024
_INDEX = "index.json"
_GZIP_LEVEL = 1
_POLL_SECONDS = 0.5
_PROGRESS = logging.getLogger("progress")


@dataclasses.dataclass(frozen=True)
class Shards:
    """Where the instances of a split are, and how an epoch is cut into batches.

    A unit is `shards_per_unit` shards whose instances are mixed and sorted by length.
    """

    paths: tuple[str, ...]
    checksums: tuple[int, ...]
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
    user_share: float = 1.0,
    batches_per_shard: int = 4,
    shards_per_unit: int = 4,
    shuffle_buffer: int = 16384,
    wait_seconds: float | None = None,
) -> Shards:
    """One pass over the instances of a split, or none where `folder` has its shards already.

    What is written is a function of the arguments and the files. Of several processes one
    writes, and the others, with the same arguments and `wait_seconds`, wait for it.

    Args:
      files: GZIP TFRecord files of transformed instances.
      split: 'train' or 'eval'; other targets (and for train, later events) are cut away.
      folder: `index.json` in it, written last, says that its shards are complete and what of.
        Shards of other arguments or files, or without an index, are written anew.
      min_events, min_targets: instances with fewer (after the cut) are left out.
      user_share: of the users, whose instances are kept.
      shuffle_buffer: instances in memory among which a shard's are drawn.
      wait_seconds: None: this process writes. Else another one does; how long to wait for each
        next shard of it.

    Raises:
      ValueError: no instance is left, or a file is damaged (named).
      TimeoutError: the other process is silent.
    """
    about = {
        "files": hashlib.sha256(json.dumps(_identities(files)).encode()).hexdigest(),
        "spec": spec.fingerprint(),
        "split": split,
        "batch_size": batch_size,
        "seed": seed,
        "min_events": min_events,
        "min_targets": min_targets,
        "user_share": user_share,
        "batches_per_shard": batches_per_shard,
        "shards_per_unit": shards_per_unit,
        "shuffle_buffer": shuffle_buffer,
    }
    if wait_seconds is not None:
        _wait(folder, about, wait_seconds)
        return load_shards(folder)
    if _is_complete(folder, about):
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
        user_share=user_share,
    )
    shard_instances = batch_size * batches_per_shard
    checksums, num_kept = [], 0
    with naming_damaged(files):
        shuffled = _shuffled(_reported(blocks, split), shard_instances, shuffle_buffer, seed)
        for number, (instances, num_events) in enumerate(shuffled):
            path = os.path.join(folder, f"shard-{number:06d}.gz")
            checksums.append(_write(path, instances, num_events))
            num_kept += len(instances)
    if not num_kept:
        raise ValueError(
            f"no instance to {split} on: none of {len(files)} files' has {min_events} events and"
            f" {min_targets} targets of the {split} split, among {user_share:.1%} of the users"
        )
    shape = {
        "num_instances": num_kept,
        "split": split,
        "batch_size": batch_size,
        "shard_instances": shard_instances,
        "shards_per_unit": shards_per_unit,
        "seed": seed,
        "checksums": checksums,
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
    shape = index["shape"] | {"checksums": tuple(index["shape"]["checksums"])}
    return Shards(paths=paths, **shape)


def read_shard(path: tf.Tensor, checksum: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """One shard's instances, string [n], and the number of events of each, int64 [n].

    Raises (in the graph):
      tf.errors.OpError: the file can't be read, or isn't what was written (named in both cases).
    """
    content = tf.io.read_file(path)
    intact = tf.debugging.Assert(
        tf.equal(_checksum(content), checksum),
        [path, "is damaged: it isn't what was written. Remove it, and it is written anew"],
    )
    with tf.control_dependencies([intact] if intact is not None else []):
        serialized = tf.io.decode_compressed(content, "GZIP")
    lists = {
        "instance": tf.io.RaggedFeature(tf.string),
        "num_events": tf.io.RaggedFeature(tf.int64),
    }
    shard = tf.io.parse_single_example(serialized, lists)
    return shard["instance"], shard["num_events"]


def _write(path: str, instances: np.ndarray, num_events: np.ndarray) -> int:
    """Returns the checksum."""
    example = tf.train.Example()
    example.features.feature["instance"].bytes_list.value.extend(instances)
    example.features.feature["num_events"].int64_list.value.extend(num_events)
    content = gzip.compress(example.SerializeToString(), _GZIP_LEVEL, mtime=0)
    with tf.io.gfile.GFile(path, "wb") as file:
        file.write(content)
    return int(_checksum(tf.constant(content)))


def _checksum(content: tf.Tensor) -> tf.Tensor:
    """FarmHash's Fingerprint64, which stays the same between versions, without its last bit."""
    return tf.strings.to_hash_bucket_fast(content, 2**63 - 1)


_Block = tuple[np.ndarray, np.ndarray]
"""Serialized instances, object [n]; and the number of events of each, int64 [n]."""


def _reported(blocks: tf.data.Dataset, split: str) -> Iterator[_Block]:
    num_read = num_kept = 0
    for instances, num_events, size in blocks.prefetch(2):
        yield instances.numpy(), num_events.numpy()
        num_read += int(size)
        num_kept += len(num_events)
        _PROGRESS.info("input: %d instances read, %d to %s on", num_read, num_kept, split)


def _shuffled(blocks: Iterator[_Block], size: int, buffer: int, seed: int) -> Iterator[_Block]:
    """Blocks of `size` instances (the last may be shorter), each drawn from `buffer` or more."""
    random = np.random.default_rng(seed)
    pool = np.empty(0, object), np.empty(0, np.int64)
    for block in blocks:
        pool = _joined(pool, block)
        surplus = (len(pool[0]) - buffer) // size * size
        if surplus > 0:
            pool = _permuted(pool, random)
            yield from _cut(_slice(pool, 0, surplus), size)
            pool = _slice(pool, surplus, None)
    yield from _cut(_permuted(pool, random), size)


def _joined(a: _Block, b: _Block) -> _Block:
    return np.concatenate([a[0], b[0]]), np.concatenate([a[1], b[1]])


def _permuted(block: _Block, random: np.random.Generator) -> _Block:
    order = random.permutation(len(block[0]))
    return block[0][order], block[1][order]


def _slice(block: _Block, start: int, stop: int | None) -> _Block:
    return block[0][start:stop], block[1][start:stop]


def _cut(block: _Block, size: int) -> Iterator[_Block]:
    for start in range(0, len(block[0]), size):
        yield _slice(block, start, start + size)


def _identities(files: Sequence[str]) -> list[tuple[str, int, int]]:
    stats = ((path, tf.io.gfile.stat(path)) for path in sorted(files))
    return [(path, stat.length, stat.mtime_nsec) for path, stat in stats]


def _wait(folder: str, about: dict[str, Any], seconds: float) -> None:
    seen, deadline = None, 0.0
    while not _is_complete(folder, about):
        names = _names(folder)
        if names != seen:
            seen, deadline = names, time.monotonic() + seconds
        if time.monotonic() > deadline:
            raise TimeoutError(
                f"{folder}: no new shard for {seconds:g} s, and those of this input aren't"
                " complete. Has the process that writes them stopped?"
            )
        time.sleep(_POLL_SECONDS)


def _is_complete(folder: str, about: dict[str, Any]) -> bool:
    index = _read_index(folder)
    if index is None or index["about"] != about or sorted(index["shards"]) != _names(folder):
        return False
    try:
        return index["shards"] == _sizes(folder)
    except tf.errors.NotFoundError:  # the writer has begun to clear the folder
        return False


def _names(folder: str) -> list[str]:
    paths = tf.io.gfile.glob(os.path.join(folder, "shard-*.gz"))
    return sorted(os.path.basename(path) for path in paths)


def _sizes(folder: str) -> dict[str, int]:
    names = _names(folder)
    return {name: tf.io.gfile.stat(os.path.join(folder, name)).length for name in names}


def _clear(folder: str) -> None:
    """The index first: without it, what remains is incomplete by definition."""
    tf.io.gfile.makedirs(folder)
    for name in (_INDEX, *_names(folder)):
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
