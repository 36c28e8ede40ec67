"""Erasing a user from a snapshot in place, such that a crash at any point leaves no damage.

The plan, which rows and slots are to go, is on disk before the first byte changes, and is removed
after the checksums are right again. Whoever opens the snapshot next carries an unfinished plan
out: each step may be repeated. The caller holds the snapshot's exclusive lock.
"""

from __future__ import annotations

import json
import pathlib

import numpy as np

from serving.knowledge import hash_index, keys, manifest
from serving.knowledge.failures import corrupt
from serving.knowledge.store import USER, USER_CATEGORY

_PLAN = "erasure.json"


def is_pending(folder: pathlib.Path) -> bool:
    """Whether an erasure was begun and not finished."""
    return (folder / _PLAN).exists()


def erase_user(folder: pathlib.Path, user: str) -> bool:
    """Overwrites the user's keys and vectors with zeros. Returns whether there were any."""
    finish(folder)
    described = manifest.read(folder)
    user_key = keys.of_ids([user])
    wanted = {USER: user_key}
    if manifest.CATEGORIES in described.checksums:
        categories = np.fromfile(folder / manifest.CATEGORIES, "<u8").reshape(-1, 2)
        wanted[USER_CATEGORY] = keys.of_pairs(user_key, categories)
    plan = {}
    for kind in wanted.keys() & described.kinds.keys():
        index = described.index(folder, kind)
        slots = hash_index.find(index, wanted[kind])
        slots = slots[slots >= 0]
        if slots.size:
            rows = hash_index.rows_of(index, slots)
            plan[kind] = {"slots": slots.tolist(), "rows": rows.tolist()}
    if plan:
        manifest.write_durably(folder / _PLAN, json.dumps(plan))
        finish(folder)
    return bool(plan)


def finish(folder: pathlib.Path) -> None:
    """Carries out the plan that is there, if any.

    Raises:
      errors.ServingError: DATA_LOSS, the plan or the manifest can't be understood.
    """
    if not is_pending(folder):
        return
    plan = _read_plan(folder / _PLAN)
    described = manifest.read(folder)
    for kind, places in plan.items():
        # The key goes first: see `snapshot._gather`.
        index = described.index(folder, kind, "r+")
        index[:, places["slots"]] = hash_index.ERASED
        fields = [field * index.shape[1] + slot for field in range(3) for slot in places["slots"]]
        _record(folder, described, manifest.index_file(kind), fields, index.itemsize)
        vectors = described.vectors(folder, kind, "r+")
        vectors[places["rows"]] = 0
        _record(folder, described, manifest.vectors_file(kind), places["rows"], vectors[0].nbytes)
    manifest.write(described, folder)
    (folder / _PLAN).unlink()
    manifest.sync(folder)


def _read_plan(path: pathlib.Path) -> dict[str, dict[str, list[int]]]:
    try:
        plan = json.loads(path.read_text())
        return {kind: {"slots": p["slots"], "rows": p["rows"]} for kind, p in plan.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise corrupt(f"{path}: is no plan of an erasure: {error!r}") from None


def _record(
    folder: pathlib.Path, described: manifest.Manifest, name: str, places: list[int], size: int
) -> None:
    """Puts a file's changed pieces of `size` bytes on disk, their checksums in `described`."""
    manifest.sync(folder / name)
    blocks = {
        block
        for place in places
        for block in range(
            place * size // manifest.BLOCK, ((place + 1) * size - 1) // manifest.BLOCK + 1
        )
    }
    for block, checksum in manifest.checksum_blocks(folder / name, blocks).items():
        described.checksums[name][block] = checksum
