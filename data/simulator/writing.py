"""Writes a simulation as Parquet, a block of users at a time."""

from __future__ import annotations

import contextlib
import json
import pathlib
import tempfile
from collections.abc import Callable, Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from data.simulator import population, tables
from data.simulator.channels import CORE_CHANNELS

MANIFEST = "simulation.json"
GENERATOR = 1
"""Goes up when the same arguments give other data."""
MIN_MEAN_EVENTS = 5.0
USERS_PER_FILE = 16 * population.BLOCK


def simulate(
    out_dir: str | pathlib.Path,
    num_users: int = 6_400,
    num_items: int = 2_000,
    num_channels: int = CORE_CHANNELS,
    mean_events: float = 48.0,
    seed: int = 0,
    users_per_file: int = USERS_PER_FILE,
    progress: Callable[[int, int], None] | None = None,
) -> pathlib.Path:
    """Writes `events-*.parquet` (by user, then time), `users.parquet` and `simulation.json`.

    The directory appears only when it is complete. One that holds the same simulation is left
    as it is. A user's events depend on `seed`, `num_items` and `mean_events` alone (and not on
    `num_users`, `num_channels` or `users_per_file`). Memory is that of `population.BLOCK`
    users plus the items, whatever `num_users`.

    Args:
      out_dir: the directory to create.
      num_users: at least 1. User ids are 0 … num_users - 1.
      num_items: at least one per category. Product ids are 0 … num_items - 1.
      num_channels: sequence channels, at least `CORE_CHANNELS`; the ones above are generic,
        noisy views of user and item (`extra_001`, …).
      mean_events: events per user on average, at least 5; each has 4 or more.
      seed: non-negative.
      users_per_file: a positive multiple of `population.BLOCK`.
      progress: called with (users done, num_users) after every block.

    Returns:
      `out_dir`.

    Raises:
      ValueError: an argument is out of range (all are listed).
      FileExistsError: `out_dir` holds something else.
      OSError: `out_dir` can't be written.
    """
    parameters = {
        "num_users": num_users,
        "num_items": num_items,
        "num_channels": num_channels,
        "mean_events": float(mean_events),
        "seed": seed,
        "users_per_file": users_per_file,
    }
    _check(parameters)
    manifest = {"generator": GENERATOR, **parameters}
    out_dir = pathlib.Path(out_dir)
    if _is_there(out_dir, manifest):
        return out_dir
    out_dir.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out_dir.parent, prefix=f".{out_dir.name}-") as temporary:
        partial = pathlib.Path(temporary) / out_dir.name
        partial.mkdir()
        _write(partial, parameters, progress)
        (partial / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
        partial.rename(out_dir)
    return out_dir


def _check(parameters: dict) -> None:
    least = {
        "num_users": 1,
        "num_items": population.NUM_CATEGORIES,
        "num_channels": CORE_CHANNELS,
        "mean_events": MIN_MEAN_EVENTS,
        "seed": 0,
        "users_per_file": population.BLOCK,
    }
    bad = [
        f"{name} is {parameters[name]}, must be at least {minimum}"
        for name, minimum in least.items()
        if not minimum <= parameters[name] < float("inf")
    ]
    if not bad and parameters["users_per_file"] % population.BLOCK:
        bad = [
            f"users_per_file is {parameters['users_per_file']},"
            f" must be a multiple of {population.BLOCK}"
        ]
    if bad:
        raise ValueError("simulate: " + "; ".join(bad))


def _is_there(out_dir: pathlib.Path, manifest: dict) -> bool:
    if not out_dir.exists() or (out_dir.is_dir() and not any(out_dir.iterdir())):
        return False
    path = out_dir / MANIFEST
    found = json.loads(path.read_text()) if path.is_file() else None
    if found == manifest:
        return True
    holds = "isn't a simulation" if found is None else f"holds another simulation: {found}"
    raise FileExistsError(f"{out_dir} {holds}. Remove it or choose another directory.")


def _write(
    out_dir: pathlib.Path, parameters: dict, progress: Callable[[int, int], None] | None
) -> None:
    num_users, per_file = parameters["num_users"], parameters["users_per_file"]
    world = population.draw_world(parameters["seed"], parameters["num_items"])
    num_files = -(-num_users // per_file)
    with _parquet(out_dir / "users.parquet") as write_users:
        for file in range(num_files):
            first, last = file * per_file, min((file + 1) * per_file, num_users)
            path = out_dir / f"events-{file:05d}-of-{num_files:05d}.parquet"
            with _parquet(path) as write_events:
                for start in range(first, last, population.BLOCK):
                    events, users = tables.block_tables(
                        world,
                        start // population.BLOCK,
                        parameters["mean_events"],
                        parameters["num_channels"] - CORE_CHANNELS,
                    )
                    end = min(start + population.BLOCK, last)
                    write_users(users.slice(0, end - start))
                    write_events(events.slice(0, _rows_below(events, end)))
                    if progress:
                        progress(end, num_users)


def _rows_below(events: pa.Table, end: int) -> int:
    """Rows of the users before `end`; events are ordered by user."""
    return int(events["user_id"].to_numpy().searchsorted(end))


@contextlib.contextmanager
def _parquet(path: pathlib.Path) -> Iterator[Callable[[pa.Table], None]]:
    """Writes tables as row groups of one file, whose schema is the first one's."""
    with contextlib.ExitStack() as stack:
        writer: pq.ParquetWriter | None = None

        def write(table: pa.Table) -> None:
            nonlocal writer
            if writer is None:
                writer = stack.enter_context(pq.ParquetWriter(path, table.schema))
            writer.write_table(table)

        yield write
