"""What fine-tuning trains of a model, and what stays as pre-training left it (PeterRec §3.3, §4.1).

Frozen layers and tables aren't `trainable`: they have no gradient and no optimizer state, and keep
their values bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import cast

import tensorflow as tf

from modules.models.encoder import LayeredEncoder
from modules.models.user_model import UserModel
from modules.training.step import tables_of

_LAST = {"last_1": 1, "last_2": 2}


def freeze(model: UserModel) -> None:
    """Leaves `training.finetune.tune` of a built model trainable: always the heads, with the
    tables that only they read; of the encoder and its tables all, the last layers, or none."""
    tune = model.spec.training.finetune.tune
    if tune == "all":
        return
    for name in _read_by_encoder(model):
        model.tables[name].trainable = False
    if tune not in _LAST:
        model.encoder.trainable = False
        return
    stages = cast(LayeredEncoder, model.encoder).stages
    for layer in [layer for stage in stages[: -_LAST[tune]] for layer in stage]:
        layer.trainable = False


def tuned_share(model: UserModel) -> float:
    """Parameters that are trained, as a share of those `tune: all` trains (PeterRec Table 3)."""
    large = [table for table in tables_of(model) if table.large]
    tuned = _count(model.trainable_variables)
    tuned += sum(table.num_rows * table.dim for table in large if table.trainable)
    # Weights that `freeze` took from what is trained are trainable variables still.
    everything = _count(v for v in model.variables if v.trainable)
    everything += sum(table.num_rows * table.dim for table in large)
    patches = sum(_count(patch.trainable_variables) for patch in model.patches or ())
    return tuned / (everything - patches)


def _read_by_encoder(model: UserModel) -> set[str]:
    spec = model.spec
    read = {channel.feature for channel in spec.scope("sequence") + spec.encoder_context}
    return {
        name
        for name, channels in spec.tables.items()
        if any(channel.feature in read for channel in channels)
    }


def _count(variables: Iterable[tf.Variable]) -> int:
    return sum(math.prod(variable.shape) for variable in variables)
