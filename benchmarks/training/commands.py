"""What a contestant's trainer is told, and what it answers: a line of JSON each over a socket."""

from __future__ import annotations

import argparse
import json
import socket
from collections.abc import Iterator
from typing import Any

from modules.training.cluster.config import (
    Cluster,
    ClusterTask,
    parse_cluster,
    task_from_environment,
)
from modules.training.cluster.orphans import die_with_parent


class Commands:
    """The trainer's end. Iterated, it gives the numbers of steps asked for, until nobody asks."""

    def __init__(self, path: str):
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(path)
        self._lines = self._socket.makefile("rw")

    def __iter__(self) -> Iterator[int]:
        return (int(line) for line in self._lines)

    def answer(self, **values: Any) -> None:
        """The first says that the trainer is ready; each after that, that the steps are done."""
        self._lines.write(json.dumps(values) + "\n")
        self._lines.flush()


def parser(description: str | None) -> argparse.ArgumentParser:
    """Flags that every contestant's trainer has."""
    flags = argparse.ArgumentParser(description=description)
    flags.add_argument("--socket", required=True)
    flags.add_argument("--cluster", required=True, type=json.loads)
    flags.add_argument("--problem", required=True, type=json.loads)
    return flags


def place(cluster: dict[str, Any]) -> tuple[Cluster, ClusterTask | None]:
    """The cluster with its addresses, and this process's place in it."""
    die_with_parent()
    parsed, task = parse_cluster(cluster), task_from_environment()
    return parsed if task is None else parsed.at(task.addresses.model_dump()), task
