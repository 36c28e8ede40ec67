"""Pre-training: masked channel prediction on training events (SuperMoE §3.1, eq. 1-2)."""

from __future__ import annotations

import tensorflow as tf
from tfx.components.trainer.fn_args_utils import FnArgs

from modules.models.pretrainer import Pretrainer
from modules.preprocessing import table_rows
from modules.training import files
from modules.training.begin import begin
from modules.training.loop import History, fit
from modules.training.reader import batches, count_batches
from modules.training.warm_start import save_encoder

_MIN_EVENTS = 2  # A lone event has no context to be predicted from.


def run_fn(fn_args: FnArgs) -> None:
    """TFX Trainer entry. Writes the encoder's checkpoint as the model artifact."""
    spec, transform_output = begin(fn_args)
    phase = spec.training.pretrain
    pretrainer = Pretrainer(spec, table_rows(spec, transform_output))
    dataset = batches(
        files.of_split(fn_args, spec, "train"),
        transform_output,
        spec,
        "train",
        phase.batch_size,
        seed=spec.training.seed,
        min_events=_MIN_EVENTS,
        min_targets=0,
    )
    num_batches = count_batches(dataset)
    if not num_batches:
        raise ValueError(f"pre-train: no user has {_MIN_EVENTS} training events")
    pretrainer.loss(next(iter(dataset)), tf.constant(0, tf.int64))  # Builds the variables.
    history = History(fn_args.model_run_dir, "pretrain")
    fit(pretrainer, pretrainer.loss, dataset, num_batches, phase, history, "pre-train")
    save_encoder(fn_args.serving_model_dir, pretrainer.encoder, pretrainer.tables)
