"""`history.jsonl`: what training recorded, one JSON object a line."""

from __future__ import annotations

import json
import pathlib
from typing import Any


class History:
    """Appends records; what a step past `resumed_at` recorded before is dropped.

    Args:
      folder: of `history.jsonl`.
      phase: 'pretrain' or 'finetune'.
      resumed_at: the step that training goes on from.
    """

    def __init__(self, folder: str | pathlib.Path, phase: str, resumed_at: int = 0):
        self.path = pathlib.Path(folder) / "history.jsonl"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._phase = phase
        kept = [line for line in self._lines() if json.loads(line)["step"] <= resumed_at]
        self.path.write_text("".join(line + "\n" for line in kept))

    def write(self, step: int, epoch: float, **values: Any) -> None:
        record = {"phase": self._phase, "step": step, "epoch": round(epoch, 3)} | values
        with self.path.open("a") as lines:
            lines.write(json.dumps(record) + "\n")

    def _lines(self) -> list[str]:
        # A killed process may have left half a line at the end.
        text = self.path.read_text() if self.path.exists() else ""
        return text.splitlines() if text.endswith("\n") else text.splitlines()[:-1]
