"""What a placement gives the training loop."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol

import tensorflow as tf

from data.spec import Phase
from modules.features import Batch
from modules.training.step import Step

Batches = Callable[[Any, Any, Any], tf.data.Dataset]
"""(epoch, start, stop), integers or int64 scalars -> those batches of the epoch, whole (all
hosts' and replicas' instances) and not localized. The same every time it is asked."""


class Progress(NamedTuple):
    """Steps that are done since the last one."""

    steps: int
    sums: dict[str, Any]
    """Every recorded value's sum over those steps, as NumPy."""


class Tables(Protocol):
    """The large tables, wherever they are, on their way to and from a checkpoint."""

    def save(self, folder: str) -> dict[str, Any]:
        """Writes the rows touched since the last save below `folder`; describes them."""

    def end_save(self, ok: bool) -> None:
        """Says whether that checkpoint is complete; if not, the rows stay touched."""

    def restore(self, chunks: Mapping[str, list[str]]) -> None:
        """Brings the tables to what the chunks (prefixes by table, oldest first) hold."""


class Placement(Protocol):
    """One of `single`, `mirrored`, `multi_worker_mirrored`, `parameter_server`, `hybrid`."""

    longest_run: int
    """Steps that `steps` may be asked for at once."""

    @property
    def tables(self) -> Tables:
        """Of a placement that was started."""

    def scope(self) -> contextlib.AbstractContextManager:
        """Where the module and its `Step` are made."""

    def start(self, step: Step, phase: Phase, batches: Batches) -> None:
        """Gets ready to train: optimizer state of the large tables, graphs."""

    def steps(
        self, epoch: int, start: int, stop: int, first: int, stop_requested: Callable[[], bool]
    ) -> Iterator[Progress]:
        """Trains on batches [start, stop) of an epoch, of which the first is step `first`.

        Once a stop is requested it ends early, after what is under way. When it is exhausted, the
        batches it has reported are applied everywhere, and they are the first ones of the range.
        """

    def sum_over_hosts(self, value: int) -> int:
        """What all trainers give, summed; every one of them must ask."""

    def predict(self, fn: Callable[[Batch], Any], batches: tf.data.Dataset) -> Iterator[Any]:
        """(batch, fn(batch)) for each of a dataset's whole batches, as NumPy."""

    def close(self) -> None:
        """Ends what `start` began; nothing is trained or saved any more."""
