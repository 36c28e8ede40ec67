"""An epoch's batches are a pure function of (shards, epoch), whatever range is read."""

from __future__ import annotations

import collections
import functools
import os
import pathlib
import shutil

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from modules.training.input.batches import epoch_batches
from modules.training.input.file_order import file_order_batches
from modules.training.input.shards import write_shards
from tests.input.transformed import write_transformed


class Reader:
    """One graph that reads any range: batches as text, each instances and a digest of all."""

    def __init__(self, folder, num_instances=110, **overrides):
        self.folder = folder
        self.transformed = write_transformed(folder, num_instances)
        arguments = {"batch_size": 3, "batches_per_shard": 2, "shards_per_unit": 2, "seed": 7}
        self.shards = write_shards(
            self.transformed.files,
            self.transformed.output,
            self.transformed.spec,
            "train",
            str(folder / "shards"),
            **arguments | overrides,
        )
        self.traces = 0
        scalar = tf.TensorSpec([], tf.int64)
        self._graph = tf.function(self._read, input_signature=[scalar] * 3, autograph=False)

    def _read(self, epoch, start, stop):
        self.traces += 1
        dataset = epoch_batches(
            self.shards, self.transformed.output, self.transformed.spec, epoch, start, stop
        )
        return dataset.map(tf.autograph.experimental.do_not_convert(_as_text)).reduce(
            tf.constant("", tf.string), lambda text, batch: tf.strings.join([text, batch])
        )

    def __call__(self, epoch, start=0, stop=None) -> list[str]:
        stop = self.shards.num_batches if stop is None else stop
        text = self._graph(*(tf.constant(x, tf.int64) for x in (epoch, start, stop)))
        return text.numpy().decode().split("\n")[:-1]


def _as_text(batch):
    ages = tf.strings.reduce_join(tf.strings.as_string(tf.cast(batch["context_age"], tf.int64)),
                                  separator=",")  # fmt: skip
    lengths = tf.reduce_sum(tf.cast(batch["sequence_mask"], tf.int64), axis=1)
    lengths = tf.strings.reduce_join(tf.strings.as_string(lengths), separator=",")
    content = tf.stack([tf.io.serialize_tensor(batch[name]) for name in sorted(batch)])
    digest = tf.strings.as_string(tf.strings.to_hash_bucket_fast(content, 2**62))
    digest = tf.strings.reduce_join(digest, separator=",")
    return tf.strings.join([ages, " ", lengths, " ", digest, "\n"])


def _instances(batches: list[str]) -> list[list[int]]:
    return [[int(x) for x in batch.split()[0].split(",")] for batch in batches]


def _lengths(batches: list[str]) -> list[list[int]]:
    return [[int(x) for x in batch.split()[1].split(",")] for batch in batches]


@pytest.fixture(scope="module")
def reader(tmp_path_factory) -> Reader:
    return Reader(tmp_path_factory.mktemp("batches"))


def test_every_instance_is_in_one_batch_of_every_epoch(reader):
    kept = reader.transformed.kept(0, 1)
    for epoch in range(3):
        batches = _instances(reader(epoch))
        assert len(batches) == reader.shards.num_batches > 4 * reader.shards.batches_per_unit
        assert sorted(sum(batches, [])) == kept
        assert sum(len(batch) < 3 for batch in batches) <= 1


@pytest.mark.parametrize("num_instances", [2, 6, 9, 30])
def test_few_instances(tmp_path, num_instances):
    """Fewer than a batch, a shard, a unit; and shards that all are full."""
    reader = Reader(tmp_path, num_instances, min_targets=0)
    for epoch in range(2):
        batches = reader(epoch)
        assert len(batches) == reader.shards.num_batches
        assert sorted(sum(_instances(batches), [])) == list(range(num_instances))
        half = len(batches) // 2
        assert reader(epoch, 0, half) + reader(epoch, half) == batches


@settings(deadline=None, max_examples=10)
@given(epoch=st.integers(0, 2), cuts=st.lists(st.integers(0, 1000), max_size=4))
def test_ranges_side_by_side_are_the_whole(reader, epoch, cuts):
    """So a run resumed at any step reads what an undisturbed one would."""
    num_batches = reader.shards.num_batches
    whole = functools.cache(reader)(epoch)
    edges = [0, *sorted(cut % (num_batches + 1) for cut in cuts), num_batches]
    parts = [reader(epoch, a, b) for a, b in zip(edges, edges[1:], strict=False)]
    assert [len(part) for part in parts] == np.diff(edges).tolist()
    assert sum(parts, []) == whole
    assert reader.traces == 1


@pytest.mark.parametrize("num_workers,size", [(1, 4), (2, 4), (3, 5)])
def test_workers_that_take_turns_read_each_batch_once(reader, num_workers, size):
    num_batches = reader.shards.num_batches
    ranges = [(a, min(a + size, num_batches)) for a in range(0, num_batches, size)]
    by_worker = [
        [batch for a, b in ranges[worker::num_workers] for batch in reader(1, a, b)]
        for worker in reversed(range(num_workers))
    ]
    assert collections.Counter(sum(by_worker, [])) == collections.Counter(reader(1))


def test_epochs_mix_other_instances_in_another_order(reader):
    epochs = [reader(epoch) for epoch in range(4)]
    groups = [{frozenset(batch) for batch in _instances(epoch)} for epoch in epochs]
    orders = [_instances(epoch) for epoch in epochs]
    by_length = [[max(batch) for batch in _lengths(epoch)] for epoch in epochs]
    for a in range(4):
        for b in range(a):
            assert orders[a] != orders[b]
            assert len(groups[a] & groups[b]) < len(groups[a]) / 2
            assert by_length[a] != by_length[b]
    assert reader(0) == epochs[0]


def test_a_unit_is_cut_by_length_and_its_batches_are_shuffled(reader):
    per_unit = reader.shards.batches_per_unit
    rising = 0
    for epoch in range(3):
        lengths = _lengths(reader(epoch))
        for start in range(0, len(lengths), per_unit):
            unit = lengths[start : start + per_unit]
            ordered = sorted(unit, key=lambda batch: (min(batch), max(batch)))
            flat = sum(ordered, [])
            assert flat == sorted(flat)
            rising += unit == ordered
    assert rising < 3 * len(lengths) / per_unit / 2


def test_eager_integers_read_the_same(reader):
    transformed = reader.transformed
    dataset = epoch_batches(reader.shards, transformed.output, transformed.spec, 1, 3, 9)
    assert [_as_text(batch).numpy().decode()[:-1] for batch in dataset] == reader(1, 3, 9)


def test_a_seed_gives_another_order(reader, tmp_path):
    other = Reader(tmp_path, seed=8)
    assert other(0) != reader(0)
    assert sorted(sum(_instances(other(0)), [])) == sorted(sum(_instances(reader(0)), []))


@pytest.mark.parametrize("start,stop", [(-1, 2), (5, 4), (0, 10_000)])
def test_a_range_outside_the_epoch_is_refused(reader, start, stop):
    with pytest.raises(tf.errors.InvalidArgumentError, match="batches from"):
        reader(0, start, stop)


@pytest.fixture
def one_shard_damaged(reader):
    """A function that damages a shard until the next call or the end of the test."""
    kept = reader.folder / "kept"
    shutil.copytree(reader.folder / "shards", kept)

    def damage(path, how):
        shutil.copytree(kept, reader.folder / "shards", dirs_exist_ok=True)
        content = bytearray(pathlib.Path(path).read_bytes())
        if how == "missing":
            os.remove(path)
        elif how == "cut short":
            os.truncate(path, len(content) - 20)
        else:
            content[len(content) // 2] ^= 0xFF
            pathlib.Path(path).write_bytes(content)

    yield damage
    shutil.copytree(kept, reader.folder / "shards", dirs_exist_ok=True)
    shutil.rmtree(kept)


@pytest.mark.parametrize("how", ["missing", "cut short", "flipped"])
def test_a_damaged_shard_is_named(reader, one_shard_damaged, how):
    path = reader.shards.paths[3]
    one_shard_damaged(path, how)
    missing = how == "missing"
    error = tf.errors.NotFoundError if missing else tf.errors.InvalidArgumentError
    with pytest.raises(error, match=f"{path}.*{'No such file' if missing else 'damaged'}"):
        reader(0)


def test_only_the_units_of_the_range_are_read(reader, one_shard_damaged):
    per_unit = reader.shards.batches_per_unit
    read = []
    for path in reader.shards.paths:
        one_shard_damaged(path, "missing")
        try:
            assert len(reader(0, per_unit + 1, 2 * per_unit - 1)) == per_unit - 2
        except tf.errors.NotFoundError:
            read.append(path)
        assert reader(0, per_unit + 1, per_unit + 1) == []
    assert len(read) == reader.shards.shards_per_unit


def test_file_order_keeps_what_the_shards_keep(reader):
    transformed = reader.transformed
    dataset = file_order_batches(
        transformed.files, transformed.output, transformed.spec, "train", 3, min_events=2
    )
    ages = [batch["context_age"].numpy().astype(int).tolist() for batch in dataset]
    assert sorted(sum(ages, [])) == transformed.kept(2, 1)
    again = [batch["context_age"].numpy().astype(int).tolist() for batch in dataset]
    assert ages == again
