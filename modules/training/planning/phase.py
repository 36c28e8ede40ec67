"""What a phase trains, without a pipeline around it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import tensorflow as tf
import tf_keras as keras

from data.spec import Phase, Spec
from modules.features import Batch
from modules.models.pretrainer import Pretrainer
from modules.models.user_model import UserModel
from modules.objectives.multi_task import multi_task_loss
from modules.training.step import LossFn
from modules.training.tuned import freeze

PhaseName = Literal["pretrain", "finetune"]


def phase_of(spec: Spec, name: PhaseName) -> Phase:
    return spec.training.pretrain if name == "pretrain" else spec.training.finetune


def build(
    spec: Spec, name: PhaseName, rows: Mapping[str, int], batch: Batch
) -> tuple[tf.Module, LossFn]:
    """The module that the phase trains, its variables made, and its loss."""
    policy = "mixed_bfloat16" if spec.model.mixed_precision else "float32"
    keras.mixed_precision.set_global_policy(policy)
    if name == "pretrain":
        pretrainer = Pretrainer(spec, dict(rows))
        pretrainer.loss(batch, tf.constant(0, tf.int64), training=False)
        return pretrainer, pretrainer.loss
    model = UserModel(spec, dict(rows))
    model.make_variables(batch)
    freeze(model)
    return model, lambda batch, step: multi_task_loss(model, batch, step)
