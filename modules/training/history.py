"""`history.jsonl`: what training recorded, one JSON object a line."""

from __future__ import annotations

import json
import pathlib
from typing import Any

from modules.training.cluster.lines import Lines


class History:
    """Appends records; what a step past `resumed_at` recorded before is dropped.

    A full disk delays records (`Lines`).

    Args:
      folder: of `history.jsonl`.
      phase: 'pretrain' or 'finetune'.
      resumed_at: the step that training goes on from.

    Attributes:
      repeated: steps past `resumed_at` that had been recorded: they are trained again.
    """

    def __init__(self, folder: str | pathlib.Path, phase: str, resumed_at: int = 0):
        self.path = pathlib.Path(folder) / "history.jsonl"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._phase = phase
        lines = self._read()
        steps = [json.loads(line)["step"] for line in lines]
        self.repeated = max([resumed_at, *steps]) - resumed_at
        kept = [line for line, step in zip(lines, steps, strict=True) if step <= resumed_at]
        self._replace("".join(line + "\n" for line in kept))
        self._lines = Lines(self.path)

    def write(self, step: int, epoch: float, **values: Any) -> None:
        record = {"phase": self._phase, "step": step, "epoch": round(epoch, 3)} | values
        self._lines.add(json.dumps(record))

    def flush(self) -> None:
        """Writes what couldn't be written before."""
        self._lines.flush()

    def _read(self) -> list[str]:
        # A killed process may have left half a line at the end.
        text = self.path.read_text() if self.path.exists() else ""
        return text.splitlines() if text.endswith("\n") else text.splitlines()[:-1]

    def _replace(self, text: str) -> None:
        new = self.path.with_suffix(".new")
        new.write_text(text)
        new.replace(self.path)  # a full disk leaves the old one
