"""Shards hold every kept instance once, and are complete or written anew."""

from __future__ import annotations

import concurrent.futures
import os
import pathlib
import signal
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from modules.training.input.parsing import parser
from modules.training.input.shards import load_shards, read_shard, write_shards
from tests.input.transformed import Transformed, write_transformed

ARGUMENTS = {
    "batch_size": 3,
    "seed": 5,
    "min_events": 2,
    "min_targets": 1,
    "batches_per_shard": 2,
    "shards_per_unit": 2,
    "shuffle_buffer": 20,
}


@pytest.fixture(scope="module")
def transformed(tmp_path_factory) -> Transformed:
    return write_transformed(tmp_path_factory.mktemp("transformed"), 120)


def _write(transformed, folder, **overrides):
    arguments = ARGUMENTS | overrides
    return write_shards(
        transformed.files, transformed.output, transformed.spec, "train", str(folder), **arguments
    )


def _instances(transformed, shards) -> list[list[int]]:
    """Numbers of the instances in each shard; also compares the lengths stored with them."""
    parse = parser(transformed.output, transformed.spec, "train")
    numbers = []
    for path, checksum in zip(shards.paths, shards.checksums, strict=True):
        serialized, num_events = read_shard(path, checksum)
        ragged = parse(serialized)
        ages = ragged["context_age"].flat_values.numpy().astype(int).tolist()
        assert num_events.numpy().tolist() == transformed.num_events[ages].tolist()
        numbers.append(ages)
    return numbers


def _kept(transformed, folder, **overrides) -> set[int]:
    return set(sum(_instances(transformed, _write(transformed, folder, **overrides)), []))


def test_a_smaller_share_of_users_is_part_of_a_larger_one(transformed, tmp_path):
    """Whole users: an instance and the other one of its user go together."""
    shares = (0.05, 0.2, 0.6, 1.0)
    anyone = {"min_events": 0, "min_targets": 0}
    kept = [
        _kept(transformed, tmp_path / str(share), user_share=share, **anyone) for share in shares
    ]
    assert kept[0] < kept[1] < kept[2] < kept[3] == set(range(120))
    for share, numbers in zip(shares, kept, strict=True):
        assert {number ^ 1 for number in numbers} == numbers
        assert abs(len(numbers) / 120 - share) < 0.15


def test_all_users_are_what_was_there_before(transformed, tmp_path):
    every = _write(transformed, tmp_path / "given", user_share=1.0)
    plain = _write(transformed, tmp_path / "plain")
    assert _instances(transformed, every) == _instances(transformed, plain)


def _stamps(shards):
    return [os.stat(path).st_mtime_ns for path in shards.paths]


def test_shards_of_one_size_hold_every_kept_instance_once(transformed, tmp_path):
    shards = _write(transformed, tmp_path)
    kept = transformed.kept(2, 1)
    assert 40 < len(kept) < 120, "some are left out"
    numbers = _instances(transformed, shards)
    assert sorted(sum(numbers, [])) == kept
    assert sum(numbers, []) != kept, "shuffled"
    *full, last = map(len, numbers)
    assert set(full) == {6} and 0 < last <= 6
    assert shards.num_instances == len(kept)
    assert shards.num_batches == -(-len(kept) // 3)
    assert load_shards(str(tmp_path)) == shards


def test_what_is_written_follows_from_the_seed(transformed, tmp_path):
    tf.random.set_seed(1)
    first = _instances(transformed, _write(transformed, tmp_path / "a"))
    tf.random.set_seed(2)
    assert _instances(transformed, _write(transformed, tmp_path / "b")) == first
    assert _instances(transformed, _write(transformed, tmp_path / "c", seed=6)) != first


def test_complete_shards_are_used_again_and_others_written_anew(transformed, tmp_path):
    shards = _write(transformed, tmp_path)
    stamps = _stamps(shards)
    assert _write(transformed, tmp_path) == shards
    assert _stamps(shards) == stamps
    larger = _write(transformed, tmp_path, batch_size=4)
    assert larger.batch_size == 4
    assert sorted(sum(_instances(transformed, larger), [])) == transformed.kept(2, 1)
    assert len(list(tmp_path.glob("shard-*"))) == len(larger.paths) < len(shards.paths)
    again = _write(transformed, tmp_path)
    assert _stamps(again) != stamps
    os.utime(transformed.files[0], (1, 1))
    stamps = _stamps(again)
    assert _stamps(_write(transformed, tmp_path)) != stamps, "other input"


def test_a_lost_or_shortened_shard_is_written_anew(transformed, tmp_path):
    shards = _write(transformed, tmp_path)
    numbers = _instances(transformed, shards)
    os.truncate(shards.paths[1], 10)
    assert _instances(transformed, _write(transformed, tmp_path)) == numbers
    os.remove(shards.paths[0])
    assert _instances(transformed, _write(transformed, tmp_path)) == numbers


def test_others_wait_for_the_writer_and_take_no_other_inputs_shards(transformed, tmp_path):
    _write(transformed, tmp_path, seed=9)
    with pytest.raises(TimeoutError, match="no new shard for 1 s"):
        _write(transformed, tmp_path, wait_seconds=1)
    with pytest.raises(TimeoutError):
        _write(transformed, tmp_path / "not yet there", wait_seconds=0)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        other = pool.submit(_write, transformed, tmp_path, wait_seconds=60)
        shards = _write(transformed, tmp_path)
        assert other.result() == shards
    assert shards.seed == ARGUMENTS["seed"]


_KILLED = """
import os, pathlib, signal, sys
from modules.training.input import shards
from tests.input.test_shards import _write
from tests.input.transformed import write_transformed

write, written = shards._write, []

def write_two(path, *instances):
    write(path, *instances)
    written.append(path)
    if len(written) == 2:
        os.kill(os.getpid(), signal.SIGKILL)

shards._write = write_two
_write(write_transformed(pathlib.Path(sys.argv[1]), 60), sys.argv[2])
"""


def test_a_killed_writer_is_started_anew(tmp_path):
    folder = tmp_path / "shards"
    child = subprocess.run(
        [sys.executable, "-c", _KILLED, str(tmp_path), str(folder)],
        env=os.environ | {"PYTHONPATH": os.getcwd()},
        timeout=120,
    )
    assert child.returncode == -signal.SIGKILL
    assert len(list(folder.glob("shard-*"))) == 2
    with pytest.raises(FileNotFoundError, match="no complete shards"):
        load_shards(str(folder))
    transformed = write_transformed(tmp_path / "same", 60)
    shards = _write(transformed, folder)
    assert sorted(sum(_instances(transformed, shards), [])) == transformed.kept(2, 1)


@pytest.mark.parametrize("damage", ["cut short", "flipped"])
def test_a_damaged_input_file_is_named(tmp_path, damage):
    transformed = write_transformed(tmp_path, 60)
    path = pathlib.Path(transformed.files[1])
    content = bytearray(path.read_bytes())
    if damage == "cut short":
        del content[len(content) // 2 :]
    else:
        content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"{path}: cut short or damaged"):
        _write(transformed, tmp_path / "shards")


def test_no_instance_left_is_an_error(transformed, tmp_path):
    with pytest.raises(ValueError, match="none of 3 files' has 99 events and 1 targets"):
        _write(transformed, tmp_path, min_events=99)
    with pytest.raises(FileNotFoundError, match="no complete shards"):
        load_shards(str(tmp_path))


def test_all_instances_of_a_pass_in_memory_are_drawn_alike(transformed, tmp_path):
    """A buffer larger than the data mixes all of it: the first shard has some of every file."""
    shards = _write(transformed, tmp_path, shuffle_buffer=1000, batches_per_shard=8)
    first = np.array(_instances(transformed, shards)[0])
    assert len(first) == 24
    assert {0, 1, 2} == set(first // 40)
