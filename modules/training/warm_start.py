"""The pre-trained encoder and tables on their way from one Trainer to the next."""

from __future__ import annotations

import pathlib
from typing import Any

from modules.training.checkpoint import dense
from modules.training.checkpoint.manifest import read
from modules.training.checkpoint.store import Checkpoint
from modules.training.checkpoint.whole import write_whole
from modules.training.lifecycle import restart_steps
from modules.training.placements.placement import Placement
from modules.training.saving import large_shards, shared_objects, table_chunks

_FOLDER = "pretrained"


def keep_for_next_phase(checkpoint: Checkpoint, folder: str) -> None:
    """Copies a checkpoint, with all that it needs, below a model artifact's folder."""
    write_whole(checkpoint, pathlib.Path(folder) / _FOLDER)


def warm_start(folder: str, module: Any, placement: Placement) -> Checkpoint:
    """Starts the encoder and all tables from a model artifact's.

    Large tables bring their optimizer state along, as it is stored with their rows; that of small
    tables and of the dense part starts afresh.

    Raises:
      FileNotFoundError: no pre-trained encoder in `folder`.
      CheckpointError: it is of another architecture; names the first variable that differs.
    """
    path = pathlib.Path(folder) / _FOLDER
    if not path.is_dir():
        raise FileNotFoundError(f"{folder}: no pre-trained encoder ({_FOLDER}/) to start from")
    checkpoint = Checkpoint(path, read(path), None)
    dense.restore(str(path / dense.NAME), shared_objects(module), large_shards(module))
    placement.tables.restore(table_chunks(checkpoint))
    restart_steps(module, checkpoint.step)
    return checkpoint
