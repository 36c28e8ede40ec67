"""Malformed rows: where they stand, what is wrong with them, and what they said."""

from __future__ import annotations

import dataclasses
import json


@dataclasses.dataclass(frozen=True)
class DeadLetter:
    """One row that could not be used."""

    file: str
    row: int
    """Line of a text file (its header is line 1; a CSV's blank lines don't count), row of a
    Parquet file (from 1)."""
    reason: str
    raw: str
    """The row's fields as read, comma-separated for a text table, else as JSON."""

    def to_json(self) -> str:
        """One line of a dead-letter file."""
        return json.dumps(dataclasses.asdict(self), ensure_ascii=False)
