"""A checkpoint on its own: to be handed on without the ones that it needs."""

from __future__ import annotations

import contextlib
import pathlib
import shutil
import uuid

from modules.training.checkpoint.draft import Draft
from modules.training.checkpoint.error import CheckpointError
from modules.training.checkpoint.store import Checkpoint
from modules.training.checkpoint.tables import merge_chain


def write_whole(checkpoint: Checkpoint, folder: str | pathlib.Path) -> Checkpoint:
    """Copies a checkpoint to a new folder, its tables merged so that it needs no other.

    The folder exists only when it is complete. The checkpoint stays as it is.

    Raises:
      CheckpointError: the folder exists, can't be written, or a chunk can't be read.
    """
    target = pathlib.Path(folder)
    if target.exists():
        raise CheckpointError(f"{target} exists already")
    saved = checkpoint.manifest
    unfinished = target.with_name(f".tmp-{target.name}-{uuid.uuid4().hex[:8]}")
    with Draft(
        unfinished,
        target,
        saved.run,
        saved.step,
        {c.folder: c.manifest for c in checkpoint.chain},
        max_deltas=0,
        committed=lambda: None,
        held=contextlib.ExitStack(),
    ) as draft:
        unfinished.mkdir(parents=True)
        for name in saved.files:
            if not name.startswith("tables/"):
                copied = unfinished / name
                copied.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(checkpoint.folder / name, copied)
        tables = merge_chain(draft, {})
        written = draft.commit(saved.placement, tables)
    return Checkpoint(target, written, None)
