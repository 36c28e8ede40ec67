"""Fine-tuning: the tasks' heads, with the shared encoder (SuperMoE §3.2-3.3) or what `tune` says of
it (PeterRec §3.3)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from data.spec import Spec
from modules.features import Batch
from modules.metrics.auc import auc
from modules.models.user_model import UserModel
from modules.objectives.multi_task import multi_task_loss
from modules.preprocessing import table_rows
from modules.training import files
from modules.training.begin import begin
from modules.training.checkpoint.store import Checkpoint
from modules.training.export import export
from modules.training.input.file_order import file_order_batches
from modules.training.placements.placement import Placement
from modules.training.program import Program
from modules.training.run import run
from modules.training.train import Trained, restored
from modules.training.tuned import freeze, tuned_share
from modules.training.warm_start import warm_start

if TYPE_CHECKING:
    from tfx.components.trainer.fn_args_utils import FnArgs

NAME = "finetune"
_CURVE_BATCHES = 64
"""Evaluation batches behind each point of the training curves; the Evaluator reads all."""


def run_fn(fn_args: FnArgs) -> None:
    """TFX Trainer entry. Starts from `base_model`'s encoder where there is one."""
    run(NAME, fn_args)


def program(fn_args: FnArgs) -> Program:
    """What is trained: the tasks' heads, and what `tune` says of the encoder with its tables."""
    spec, transform_output = begin(fn_args)
    if spec.training.pretrain.epochs and not fn_args.base_model:
        raise FileNotFoundError("fine-tune: the spec pre-trains, but no pre-trained model arrived")

    def build(batch: Batch) -> UserModel:
        model = UserModel(spec, table_rows(spec, transform_output))
        model.make_variables(batch)
        freeze(model)
        return model

    def start(model: UserModel, placement: Placement) -> Checkpoint | None:
        if not fn_args.base_model:
            return None
        return warm_start(fn_args.base_model, model, placement)

    def at_epoch_end(model: UserModel, placement: Placement) -> dict[str, float]:
        aucs = binary_auc(model, placement, held_out, spec)
        if spec.training.finetune.tune == "all":
            return aucs
        return aucs | {"tuned_share": tuned_share(model)}

    held_out = file_order_batches(
        files.of_split(fn_args, spec, "eval"),
        transform_output,
        spec,
        "eval",
        spec.training.finetune.batch_size,
    ).take(_CURVE_BATCHES)
    return Program(
        NAME,
        "fine-tune",
        spec,
        transform_output,
        spec.training.finetune,
        build,
        multi_task_loss,
        warm_start=start,
        # Pre-training learns from users without labels too.
        min_targets=0 if spec.training.finetune.pretraining_weight else 1,
        user_share=spec.training.finetune.user_share,
        at_epoch_end=at_epoch_end,
    )


def finish(fn_args: FnArgs, trained: Trained) -> None:
    """Exports the model that a checkpoint holds."""
    of_phase = program(fn_args)
    model = restored(of_phase, trained)
    export(model, of_phase.transform_output, fn_args.serving_model_dir)


def binary_auc(
    model: UserModel, placement: Placement, held_out: tf.data.Dataset, spec: Spec
) -> dict[str, float]:
    """AUC of every binary task over `held_out`, for the training curves."""
    tasks = [task for task in spec.tasks if task.type == "binary"]
    labels: dict[str, list[np.ndarray]] = {task.name: [] for task in tasks}
    scores: dict[str, list[np.ndarray]] = {task.name: [] for task in tasks}

    def logits_of(batch: Batch) -> Any:
        return model(batch)[0]

    for batch, logits in placement.predict(logits_of, held_out):
        for task in tasks:
            label = batch[task.label_feature]
            present = ~np.isnan(label)
            labels[task.name].append(label[present])
            scores[task.name].append(logits[task.name][present])
    return {
        f"val/{name}/auc": auc(np.concatenate(labels[name]), np.concatenate(scores[name]))
        for name in labels
        if len({*np.concatenate(labels[name])}) == 2
    }
