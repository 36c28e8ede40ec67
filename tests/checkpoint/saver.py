"""Saves checkpoints that can be told from torn ones; as a program, until it is killed.

`python -m tests.checkpoint.saver <folder> <kind> [<event>]`: on and on, or up to an exact moment:
the so-manieth file that is opened, made, renamed or removed.
"""

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
      kind: 'plain' files, or 'tensors' (a bundle of TensorFlow's).
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


def _write_bundle(prefix: pathlib.Path, values: np.ndarray) -> None:
    from modules.training.checkpoint import bundle  # TensorFlow: not for plain files

    bundle.write(str(prefix), {"values": values})


def _read_bundle(prefix: pathlib.Path) -> np.ndarray:
    from modules.training.checkpoint import bundle

    return bundle.Reader(str(prefix))["values"]


def main(folder: str, kind: str, last_event: str = "") -> None:
    store = Checkpoints(folder, RUN, keep=2, max_deltas=3)
    latest = store.latest()
    parent = latest.step if latest else None
    if kind == "tensors":
        _write_bundle(pathlib.Path(folder) / "warm/up", np.zeros(1, np.float32))
    print("begun", flush=True)
    if last_event:
        _die_at(int(last_event))
    for step in itertools.count((parent or 0) + 1):
        save(store, step, parent, kind, num_floats=1_000_000)
        parent = step


def _die_at(last: int) -> None:
    events = itertools.count(1)

    def hook(event: str, arguments: tuple) -> None:
        if (event == "open" or event.startswith("os.")) and next(events) == last:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


if __name__ == "__main__":
    main(*sys.argv[1:])
