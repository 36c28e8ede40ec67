"""Trains a module on batches given by hand, as the `single` placement does."""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf

from data.spec import Phase
from modules.features import Batch
from modules.training.history import History
from modules.training.loop import Loop
from modules.training.placements.synchronous import Synchronous
from modules.training.step import Step


def fit(
    module: Any,
    loss_fn: Callable,
    dataset: tf.data.Dataset,
    num_batches: int,
    phase: Phase,
    folder: str,
    at_epoch_end: Callable[[], dict[str, float]] = dict,
    stop_requested: Callable[[], bool] = lambda: False,
    features: Mapping[str, tuple[str, ...]] = types.MappingProxyType({}),
) -> None:
    """`dataset` is every epoch's; its batches are dicts. `features`: of `large_tables`."""
    placement = Synchronous(tf.distribute.get_strategy(), features)
    step = Step(module, loss_fn, phase, phase.epochs * num_batches)
    placement.start(step, phase, lambda epoch, start, stop: dataset.skip(start).take(stop - start))
    loop = Loop(
        "fine-tune",
        num_batches,
        phase.epochs,
        save_every=10**9,
        history=History(folder, "finetune"),
        save=lambda step: None,
        at_epoch_end=at_epoch_end,
        stop_requested=stop_requested,
    )
    loop.run(placement, 0)


def fit_batch(
    module: Any, loss_fn: Callable, batch: Batch, phase: Phase, folder: str, **kwargs: Any
) -> None:
    """`phase.epochs` steps on one batch, as one epoch: every epoch makes its dataset, in 50 ms."""
    steps = phase.epochs
    dataset = tf.data.Dataset.from_tensors(batch).repeat(steps)
    phase = phase.model_copy(update={"epochs": 1})
    fit(module, loss_fn, dataset, steps, phase, folder, **kwargs)
