"""Pre-training: the encoder under its objective, masked channels unless the spec says otherwise."""

from __future__ import annotations

from typing import TYPE_CHECKING

import tensorflow as tf

from modules.features import Batch
from modules.models.pretrainer import Pretrainer
from modules.preprocessing import table_rows
from modules.training.begin import begin
from modules.training.program import Program
from modules.training.run import run
from modules.training.train import Trained
from modules.training.warm_start import keep_for_next_phase

if TYPE_CHECKING:
    from tfx.components.trainer.fn_args_utils import FnArgs

NAME = "pretrain"
_MIN_EVENTS = 2  # A lone event has no context to be predicted from.


def run_fn(fn_args: FnArgs) -> None:
    """TFX Trainer entry. Writes the pre-trained weights and tables as the model artifact."""
    run(NAME, fn_args)


def program(fn_args: FnArgs) -> Program:
    """What is trained: the encoder, its tables and the objective's own heads."""
    spec, transform_output = begin(fn_args)

    def build(batch: Batch) -> Pretrainer:
        pretrainer = Pretrainer(spec, table_rows(spec, transform_output))
        pretrainer.loss(batch, tf.constant(0, tf.int64), training=False)
        return pretrainer

    return Program(
        NAME,
        "pre-train",
        spec,
        transform_output,
        spec.training.pretrain,
        build,
        lambda pretrainer, batch, step: pretrainer.loss(batch, step),
        min_events=_MIN_EVENTS,
        min_targets=0,
    )


def finish(fn_args: FnArgs, trained: Trained) -> None:
    keep_for_next_phase(trained.checkpoint, fn_args.serving_model_dir)
