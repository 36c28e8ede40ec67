"""Saves checkpoints that can be told from torn ones; as a program, is killed while it does."""

from __future__ import annotations

import itertools
import os
import pathlib
import signal
import sys

import numpy as np

from modules.training.checkpoint.store import Checkpoint, Checkpoints

RUN = "saver"
_FILES = 4


def save(store: Checkpoints, step: int, parent: int | None, kind: str, num_floats: int) -> None:
    """Saves `num_floats` floats that all say `step`, in several files.

    Args:
      kind: 'plain' files, or 'tensors' (bundles of TensorFlow's).
    """
    values = np.full(num_floats // _FILES, step, np.float32)
    with store.begin(step, parent) as draft:
        for number in range(_FILES):
            if kind == "plain":
                (draft.folder / f"part-{number}").write_bytes(values.tobytes())
            else:
                _write_bundle(draft.folder / f"part-{number}", values)
        if draft.needs_merge:
            draft.ancestors = {}
        draft.commit("single", {})


def check(checkpoint: Checkpoint) -> None:
    """Every part is there, whole and of this step."""
    for number in range(_FILES):
        prefix = checkpoint.folder / f"part-{number}"
        values = np.fromfile(prefix, np.float32) if prefix.exists() else _read_bundle(prefix)
        assert len(values)
        assert (values == checkpoint.step).all()


def check_visible(folder: pathlib.Path) -> Checkpoint | None:
    """Nothing that can be seen is torn -> the newest checkpoint."""
    store = Checkpoints(folder, RUN)
    latest = store.latest()
    assert store.skipped == []
    for checkpoint in latest.chain if latest else ():
        check(checkpoint)
    return latest


def _write_bundle(prefix: pathlib.Path, values: np.ndarray) -> None:
    from modules.training.checkpoint import bundle  # TensorFlow: not for plain files

    bundle.write(str(prefix), {"values": values})


def _read_bundle(prefix: pathlib.Path) -> np.ndarray:
    from modules.training.checkpoint import bundle

    return bundle.Reader(str(prefix))["values"]


def _save_on(folder: pathlib.Path, kind: str, num_floats: int) -> None:
    store = Checkpoints(folder, RUN, keep=1, max_deltas=1)
    latest = store.latest()
    parent = latest.step if latest else None
    for step in itertools.count((parent or 0) + 1):
        save(store, step, parent, kind, num_floats)
        parent = step


def _kill_at_every_point(folder: pathlib.Path) -> None:
    """A point: the so-manieth file opened, made, renamed or removed. Several saves' worth.

    Prints the points, after how many of them an unfinished save was left, and the last step.
    """
    points, torn, step = range(1, 150), 0, 0
    for point in points:
        child = os.fork()
        if not child:
            _die_at(point)
            _save_on(folder, "plain", num_floats=4_000)
        _, status = os.waitpid(child, 0)
        assert os.WTERMSIG(status) == signal.SIGKILL
        torn += any(folder.glob(".tmp-*"))
        latest = check_visible(folder)
        found = latest.step if latest else 0
        assert found >= step
        step = found
    Checkpoints(folder, RUN).begin(step + 1, step).abort()
    assert not list(folder.glob(".tmp-*"))
    print(len(points), torn, step)


def _die_at(point: int) -> None:
    events = itertools.count(1)

    def hook(event: str, arguments: tuple) -> None:
        if (event == "open" or event.startswith("os.")) and next(events) == point:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def main(folder: str, mode: str) -> None:
    if mode == "at_every_point":
        _kill_at_every_point(pathlib.Path(folder))
    else:
        _save_on(pathlib.Path(folder), "tensors", num_floats=1_000_000)


if __name__ == "__main__":
    main(*sys.argv[1:])
