"""The training curves a Trainer wrote: `history.jsonl` in its `model_run` artifact."""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib

FILE = "history.jsonl"
_NOT_VALUES = {"phase", "step", "epoch", "epoch_end", "expert_load", "lifecycle"}


@dataclasses.dataclass(frozen=True)
class History:
    """One phase of training."""

    phase: str
    curves: dict[str, list[tuple[float, float]]]
    """Value's name -> (step, value), finite values only. `loss` is one batch's, `epoch loss` an
    epoch's mean."""
    expert_load: list[list[list[float]]]
    """[epoch][layer][expert], share of the tokens."""
    lifecycles: dict[str, list[dict[str, int]]]
    """Dynamic table -> by epoch, what happened to its ids; `epoch` is among the values."""


def read_history(folder: pathlib.Path) -> History | None:
    """Reads the history in a `model_run` artifact; None where the phase was skipped.

    Raises:
      ValueError: a line isn't what a Trainer writes; names it.
    """
    path = folder / FILE
    if not path.exists():
        return None
    curves: dict[str, list[tuple[float, float]]] = {}
    loads, phase = [], ""
    lifecycles: dict[str, list[dict[str, int]]] = {}
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        try:
            record = json.loads(line)
            phase, step = record["phase"], record["step"]
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(f"{path}, line {number}: not a history record: {error}") from None
        for name, value in record.items():
            if name in _NOT_VALUES or not math.isfinite(value):
                continue
            if name == "loss" and record.get("epoch_end"):
                name = "epoch loss"
            curves.setdefault(name, []).append((step, value))
        if "expert_load" in record:
            loads.append(record["expert_load"])
        for table, told in record.get("lifecycle", {}).items():
            lifecycles.setdefault(table, []).append({"epoch": record["epoch"]} | told)
    return History(phase, curves, loads, lifecycles)
