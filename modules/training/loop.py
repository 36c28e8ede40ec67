"""The training loop: steps, what they record, checkpoints, going on after a fault."""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from collections.abc import Callable
from typing import Any

from modules.training.history import History
from modules.training.placements.placement import Placement, Progress

_PROGRESS = logging.getLogger("progress")
_STALL_SECONDS = 10.0
_STALL_RATIO = 10.0
"""Steps that take so long, and so much longer than the ones before, have stood still."""


class Preempted(Exception):
    """Training was told to stop; once `step` is saved, it can go on from there."""

    def __init__(self, title: str, step: int):
        super().__init__(f"{title}: stopped at step {step}")
        self.step = step


@dataclasses.dataclass(frozen=True)
class Loop:
    """Args:
    title: what progress lines call this phase.
    num_batches: of an epoch.
    save_every: steps between two checkpoints, counted from the first step.
    history: None for a trainer that isn't the chief: it tells nothing.
    save: (step) takes a checkpoint; nothing is being trained meanwhile.
    at_epoch_end: more values to record.
    stop_requested: asked between steps.
    lifecycle: of dynamic tables, by table, since it was asked last; asked at an epoch's end.
    report: told of `stalled` (step, seconds): another process, or the network, was waited for.
    """

    title: str
    num_batches: int
    epochs: int
    save_every: int
    history: History | None
    save: Callable[[int], None]
    at_epoch_end: Callable[[], dict[str, float]]
    stop_requested: Callable[[], bool]
    lifecycle: Callable[[], dict[str, dict[str, int]]] = dict
    report: Callable[..., None] = lambda event, **fields: None

    @property
    def num_steps(self) -> int:
        return self.epochs * self.num_batches

    def run(self, placement: Placement, step: int) -> None:
        """Trains from `step` to the end.

        Raises:
          Preempted: a stop was requested; the step it came to is yet to be saved.
          FloatingPointError: the loss is no longer finite; names the step at which it was noticed.
        """
        started, first = time.monotonic(), step
        epoch_sums: dict[str, Any] = {}
        epoch_steps = 0
        usual: float | None = None  # seconds a step, saves included; the first ones trace graphs
        since = time.monotonic()
        while step < self.num_steps:
            epoch, at = divmod(step, self.num_batches)
            until_save = self.save_every - step % self.save_every
            end = min(self.num_batches, at + min(until_save, placement.longest_run))
            for progress in placement.steps(epoch, at, end, step, self.stop_requested):
                step += progress.steps
                since, taken = time.monotonic(), time.monotonic() - since
                usual = self._noticed(step, progress.steps, taken, usual, step - first)
                epoch_steps += progress.steps
                epoch_sums = _added(epoch_sums, progress)
                self._record(step, progress, (step - first) / (time.monotonic() - started))
            stop = placement.sum_over_hosts(self.stop_requested()) > 0
            if step % self.num_batches == 0 and epoch_steps:  # not told at once to stop
                self._record_epoch(step, {k: v / epoch_steps for k, v in epoch_sums.items()})
                epoch_sums, epoch_steps, since = {}, 0, time.monotonic()
            if stop:
                raise Preempted(self.title, step)
            if step % self.save_every == 0:
                self.save(step)
                since = time.monotonic()

    def _noticed(
        self, step: int, steps: int, seconds: float, usual: float | None, done: int
    ) -> float | None:
        """Tells of a stall; returns the usual seconds a step, which a stall doesn't change."""
        if done == steps:
            return None
        if usual and seconds > max(_STALL_SECONDS, _STALL_RATIO * usual * steps):
            self.report("stalled", step=step, seconds=round(seconds - usual * steps, 3))
            return usual
        one = seconds / steps
        return one if usual is None else 0.9 * usual + 0.1 * one

    def _record(self, step: int, progress: Progress, rate: float) -> None:
        loss = self._finite(float(progress.sums["loss"]) / progress.steps, step)
        if self.history is None:
            return
        self.history.write(step, step / self.num_batches, loss=loss)
        _PROGRESS.info(
            "%s: step %d/%d, loss %.4f, %.1f steps/s",
            self.title,
            step,
            self.num_steps,
            loss,
            rate,
            extra={"fraction": step / self.num_steps},
        )

    def _record_epoch(self, step: int, means: dict[str, Any]) -> None:
        if self.history is None:
            return
        ends = self.at_epoch_end()
        epoch = step // self.num_batches
        values = {name: mean.tolist() for name, mean in means.items()}
        if of_tables := self.lifecycle():
            values["lifecycle"] = of_tables
        self.history.write(step, epoch, epoch_end=True, **values, **ends)
        _PROGRESS.info(
            "%s: epoch %d/%d, loss %.4f%s",
            self.title,
            epoch,
            self.epochs,
            means["loss"],
            "".join(f", {name} {value:.4f}" for name, value in ends.items()),
            extra={"fraction": step / self.num_steps},
        )

    def _finite(self, loss: float, step: int) -> float:
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"{self.title}: loss is {loss} at step {step}; lower the learning rate"
            )
        return loss


def _added(sums: dict[str, Any], progress: Progress) -> dict[str, Any]:
    if not sums:
        return dict(progress.sums)
    return {name: sums[name] + value for name, value in progress.sums.items()}
