"""What a phase trains, said once for every placement."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import tensorflow as tf
import tensorflow_transform as tft

from data.spec import Phase, Spec
from modules.features import Batch
from modules.training.checkpoint.store import Checkpoint
from modules.training.placements.placement import Placement
from modules.training.step import Scalars


@dataclasses.dataclass(frozen=True)
class Program:
    """Args:
    name: 'pretrain' or 'finetune'.
    title: what progress lines call it.
    build: makes the module, in the placement's scope; a small batch builds its variables.
    loss: (module, batch, step) -> (loss, values to record), shares of the whole batch's; a value
      named `expert_load` is a [layers, experts] tensor, every other a scalar.
    min_events, min_targets: instances with fewer are not trained on.
    user_share: of the users, that are trained on.
    warm_start: (module, placement) before the first step -> what it restored, if anything.
    at_epoch_end: (module, placement) -> more values to record.
    """

    name: str
    title: str
    spec: Spec
    transform_output: tft.TFTransformOutput
    phase: Phase
    build: Callable[[Batch], Any]
    loss: Callable[[Any, Batch, tf.Tensor], tuple[tf.Tensor, Scalars]]
    min_events: int = 0
    min_targets: int = 1
    user_share: float = 1.0
    warm_start: Callable[[Any, Placement], Checkpoint | None] = lambda module, placement: None
    at_epoch_end: Callable[[Any, Placement], dict[str, float]] = lambda module, placement: {}
