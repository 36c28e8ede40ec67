"""Variables of a program's objects: saved under one placement, restored under another."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from modules.training.checkpoint import dense
from modules.training.checkpoint.error import CheckpointError, DamagedError
from tests.checkpoint import placements
from tests.checkpoint.placements import Program, assert_equal
from tests.checkpoint.saves import cut
from tests.repo.source_tree import ROOT


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mirrored", "parameter_server"])
def test_a_placement_and_a_single_device_restore_each_other(tmp_path, name):
    """In a process of its own: devices can't be added to one that uses TensorFlow already."""
    command = [sys.executable, "-m", placements.__name__, str(tmp_path), name]
    subprocess.run(command, cwd=ROOT, check=True)


def test_every_variable_is_saved_once_under_a_name_that_says_what_it_is():
    program = Program(seed=1)
    names = set(program.snapshot())
    assert len(names) == len({v.ref() for v in program.all_variables}) - 1  # not `large`
    assert {
        "model/layer-0/kernel",
        "model/layer-1/moving_variance",
        "program/adam/_iterations",
        "program/adam/_momentums/0",
        "program/adam/_velocities/0",
        "program/adagrad/_accumulators/0",
        "program/generator/_state_var",
        "program/steps",
        "program/table",
    } <= names
    assert not any("large" in name for name in names)


def test_a_snapshot_is_a_copy():
    program = Program(seed=1)
    snapshot = program.snapshot()
    kernel = snapshot["model/layer-0/kernel"].copy()
    program.train(placements.run_here, 1)
    np.testing.assert_array_equal(snapshot["model/layer-0/kernel"], kernel)
    assert not (program.model.layers[0].kernel.numpy() == kernel).all()


def test_a_restored_program_goes_on_as_if_nothing_had_happened(tmp_path):
    straight, resumed = Program(seed=1), Program(seed=2)
    straight.train(placements.run_here, 2)
    dense.write(str(tmp_path / "a"), straight.snapshot())
    resumed.restore(str(tmp_path / "a"))
    for program in straight, resumed:
        program.train(placements.run_here, 2)
    assert_equal(resumed.snapshot(), straight.snapshot())


def test_part_of_the_objects_can_be_restored(tmp_path):
    program, other = Program(seed=1), Program(seed=2)
    dense.write(str(tmp_path / "a"), program.snapshot())
    dense.restore(str(tmp_path / "a"), {"model": other.model})
    np.testing.assert_array_equal(other.model.layers[0].kernel, program.model.layers[0].kernel)
    assert not (other.table.numpy() == program.table.numpy()).all()


def _layers(**shapes: list[int]) -> dict[str, tf.Module]:
    module = tf.Module()
    for name, shape in shapes.items():
        setattr(module, name, tf.Variable(tf.zeros(shape)))
    return {"model": module}


@pytest.mark.parametrize(
    ("here", "reason"),
    [
        ({"a": [2], "b": [3], "c": [1]}, "model/c was not saved"),
        ({"a": [2], "b": [4]}, r"model/b was saved as float32 \[3\], but is float32 \[4\]"),
        ({"a": [2]}, r"model/b was saved, but doesn't exist \(not built yet\?\)"),
    ],
)
def test_another_model_is_refused_before_anything_is_assigned(tmp_path, here, reason):
    saved = _layers(a=[2], b=[3])
    saved["model"].a.assign([1.0, 1.0])
    dense.write(str(tmp_path / "dense"), dense.dense_snapshot(saved))
    objects = _layers(**here)
    with pytest.raises(CheckpointError, match=f"dense: {reason}"):
        dense.restore(str(tmp_path / "dense"), objects)
    assert (objects["model"].a.numpy() == 0).all()


def test_an_optimizer_that_is_not_built_is_refused(tmp_path):
    program = Program(seed=1)
    dense.write(str(tmp_path / "a"), program.snapshot())
    with pytest.raises(CheckpointError, match="not built yet"):
        dense.restore(str(tmp_path / "a"), {"model": keras.Sequential([])})


@pytest.mark.parametrize("file", ["dense.index", "dense.data-00000-of-00001"])
def test_a_damaged_bundle_is_named(tmp_path, file):
    objects = _layers(a=[2], b=[3])
    prefix = str(tmp_path / dense.NAME)
    dense.write(prefix, dense.dense_snapshot(objects))
    cut(tmp_path / file)
    with pytest.raises(DamagedError, match=f"^{prefix} can't be read"):
        dense.restore(prefix, objects)
