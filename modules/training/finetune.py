"""Fine-tuning: every task's tower and the shared encoder together (SuperMoE §3.2-3.3)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import tensorflow as tf
from tfx.components.trainer.fn_args_utils import FnArgs

from data.spec import Spec
from modules.metrics.auc import auc
from modules.models.supermoe import SuperMoE
from modules.objectives.multi_task import multi_task_loss
from modules.preprocessing import table_rows
from modules.training import files
from modules.training.begin import begin
from modules.training.export import export
from modules.training.loop import History, fit
from modules.training.reader import batches, count_batches
from modules.training.warm_start import load_encoder

_CURVE_BATCHES = 64
"""Evaluation batches behind each point of the training curves; the Evaluator reads all."""


def run_fn(fn_args: FnArgs) -> None:
    """TFX Trainer entry. Starts from `base_model`'s encoder where there is one."""
    spec, transform_output = begin(fn_args)
    phase = spec.training.finetune
    model = SuperMoE(spec, table_rows(spec, transform_output))

    def dataset_of(split: str, seed: int | None) -> tf.data.Dataset:
        paths = files.of_split(fn_args, spec, split)
        return batches(paths, transform_output, spec, split, phase.batch_size, seed=seed)

    dataset = dataset_of("train", spec.training.seed)
    num_batches = count_batches(dataset)
    if not num_batches:
        raise ValueError("fine-tune: no training target has a label")
    model(next(iter(dataset)))  # Builds the variables.
    if fn_args.base_model:
        load_encoder(fn_args.base_model, model.encoder, model.tables)
    elif spec.training.pretrain.epochs:
        raise FileNotFoundError("fine-tune: the spec pre-trains, but no pre-trained model arrived")
    history = History(fn_args.model_run_dir, "finetune")
    held_out = dataset_of("eval", None).take(_CURVE_BATCHES)
    predict = tf.function(
        lambda batch: model(batch)[0], input_signature=[held_out.element_spec], autograph=False
    )
    fit(
        model,
        lambda batch, _: multi_task_loss(model, batch),
        dataset,
        num_batches,
        phase,
        history,
        "fine-tune",
        at_epoch_end=lambda: _binary_auc(predict, held_out, spec),
    )
    export(model, transform_output, fn_args.serving_model_dir)


def _binary_auc(
    predict: Callable[[dict[str, tf.Tensor]], dict[str, tf.Tensor]],
    dataset: tf.data.Dataset,
    spec: Spec,
) -> dict[str, float]:
    """AUC of every binary task over `dataset`, for the training curves."""
    tasks = [task for task in spec.tasks if task.type == "binary"]
    labels: dict[str, list[np.ndarray]] = {task.name: [] for task in tasks}
    scores: dict[str, list[np.ndarray]] = {task.name: [] for task in tasks}
    for batch in dataset:
        logits = predict(batch)
        for task in tasks:
            label = batch[task.label_feature].numpy()
            present = ~np.isnan(label)
            labels[task.name].append(label[present])
            scores[task.name].append(logits[task.name].numpy()[present])
    return {
        f"val/{name}/auc": auc(np.concatenate(labels[name]), np.concatenate(scores[name]))
        for name in labels
        if len({*np.concatenate(labels[name])}) == 2
    }
