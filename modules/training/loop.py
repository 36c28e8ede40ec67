"""The training loop: tables on row-wise Adagrad, everything else on AdamW (DESIGN §6)."""

from __future__ import annotations

import json
import logging
import math
import pathlib
import time
from collections.abc import Callable
from typing import Any

import tensorflow as tf
import tf_keras as keras

from data.spec import Phase
from modules.embeddings.rowwise_adagrad import RowwiseAdagrad
from modules.embeddings.table import EmbeddingTable

Scalars = dict[str, tf.Tensor]
LossFn = Callable[[Any, tf.Tensor], tuple[tf.Tensor, Scalars]]
_PROGRESS = logging.getLogger("progress")
_CLIP_NORM = 1.0
_WARMUP_FRACTION = 0.05
_FINAL_RATE = 0.1
_UNDECAYED = r"(^|/)(bias|beta|gamma):0$"
"""Weight decay is for what multiplies; anchored, as a task or channel may be called anything."""


class History:
    """Appends one JSON object a line to `history.jsonl` in a run's folder."""

    def __init__(self, folder: str, phase: str):
        self._path = pathlib.Path(folder) / "history.jsonl"
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.write_text("")
        self._phase = phase

    def write(self, step: int, epoch: float, **values: Any) -> None:
        record = {"phase": self._phase, "step": step, "epoch": round(epoch, 3)} | values
        with self._path.open("a") as lines:
            lines.write(json.dumps(record) + "\n")


class WarmupCosine(keras.optimizers.schedules.LearningRateSchedule):
    """Linear warm-up over 5% of the steps, then a cosine down to a tenth of the peak."""

    def __init__(self, peak: float, num_steps: int):
        self._peak, self._num_steps = peak, num_steps

    def __call__(self, step):
        step = tf.cast(step, tf.float32)
        warmup = max(1.0, _WARMUP_FRACTION * self._num_steps)
        progress = tf.clip_by_value((step - warmup) / max(1.0, self._num_steps - warmup), 0.0, 1.0)
        cosine = _FINAL_RATE + (1 - _FINAL_RATE) * 0.5 * (1 + tf.cos(math.pi * progress))
        return self._peak * tf.minimum((step + 1) / warmup, cosine)

    def get_config(self):
        return {"peak": self._peak, "num_steps": self._num_steps}


def fit(
    module: tf.Module,
    loss_fn: LossFn,
    dataset: tf.data.Dataset,
    num_batches: int,
    phase: Phase,
    history: History,
    name: str,
    at_epoch_end: Callable[[], dict[str, float]] = dict,
) -> None:
    """Trains every trainable variable of `module` for `phase.epochs`.

    Args:
      loss_fn: (batch, step int64 scalar) -> (loss, values to record); a value named
        `expert_load` is a [layers, experts] tensor, every other a scalar.
      dataset: one epoch; its order may change every time it is iterated.
      num_batches: batches in an epoch, for the learning-rate schedule.
      name: what progress lines call this phase.
      at_epoch_end: more values to record.

    Raises:
      FloatingPointError: the loss is no longer finite; names the step at which it was noticed
        (looked for every 20 steps and at an epoch's end).
    """
    num_steps = phase.epochs * num_batches
    train_step = make_train_step(module, loss_fn, dataset.element_spec, phase, num_steps)
    step, started = 0, time.monotonic()
    for epoch in range(phase.epochs):
        totals: Scalars = {}
        count = 0
        for batch in dataset:
            values = train_step(batch, tf.constant(step, tf.int64))
            totals = values if not totals else {k: totals[k] + v for k, v in values.items()}
            step, count = step + 1, count + 1
            if step % 20 == 0:
                loss = _finite(float(values["loss"]), name, step)
                history.write(step, step / num_batches, loss=loss)
                _PROGRESS.info(
                    "%s: step %d/%d, loss %.4f, %.1f steps/s",
                    name,
                    step,
                    num_steps,
                    loss,
                    step / (time.monotonic() - started),
                    extra={"fraction": step / num_steps},
                )
        means = {k: (v / count).numpy().tolist() for k, v in totals.items()}
        _finite(means["loss"], name, step)
        ends = at_epoch_end()
        history.write(step, epoch + 1.0, epoch_end=True, **means, **ends)
        _PROGRESS.info(
            "%s: epoch %d/%d, loss %.4f%s",
            name,
            epoch + 1,
            phase.epochs,
            means["loss"],
            "".join(f", {k} {v:.4f}" for k, v in ends.items()),
            extra={"fraction": step / num_steps},
        )


def make_train_step(
    module: tf.Module, loss_fn: LossFn, batch_spec: Any, phase: Phase, num_steps: int
) -> Callable[[Any, tf.Tensor], Scalars]:
    """One step of both optimizers as a graph: (batch, step int64 scalar) -> recorded values.

    Args:
      batch_spec: of the batches; unknown sizes in it don't retrace.
      num_steps: steps of the phase, for the learning-rate schedule.
    """
    tables, dense = _split_variables(module)
    table_optimizer = RowwiseAdagrad(phase.table_learning_rate)
    dense_optimizer = keras.optimizers.AdamW(
        WarmupCosine(phase.learning_rate, num_steps), weight_decay=phase.weight_decay
    )
    dense_optimizer.exclude_from_weight_decay(var_names=[_UNDECAYED])
    table_optimizer.build(tables)
    dense_optimizer.build(dense)

    # No Python branch here depends on data; converting it all anyway would triple the tracing time.
    @tf.function(autograph=False, input_signature=[batch_spec, tf.TensorSpec([], tf.int64)])
    def train_step(batch, step):
        with tf.GradientTape() as tape:
            loss, values = loss_fn(batch, step)
        gradients = tape.gradient(loss, tables + dense)
        table_gradients, dense_gradients = gradients[: len(tables)], gradients[len(tables) :]
        dense_gradients, norm = tf.clip_by_global_norm(dense_gradients, _CLIP_NORM)
        dense_optimizer.apply_gradients(_present(dense_gradients, dense))
        table_optimizer.apply_gradients(_present(table_gradients, tables))
        return values | {"loss": loss, "gradient_norm": norm}

    return train_step


def _finite(loss: float, name: str, step: int) -> float:
    if not math.isfinite(loss):
        raise FloatingPointError(f"{name}: loss is {loss} at step {step}; lower the learning rate")
    return loss


def _split_variables(module: tf.Module) -> tuple[list[tf.Variable], list[tf.Variable]]:
    layers = [m for m in module.submodules if isinstance(m, EmbeddingTable)]
    tables = [v for layer in layers for v in layer.trainable_variables]
    in_tables = {v.ref() for v in tables}
    dense = [v for v in module.trainable_variables if v.ref() not in in_tables]
    return tables, dense


def _present(gradients, variables):
    return [(g, v) for g, v in zip(gradients, variables, strict=True) if g is not None]
