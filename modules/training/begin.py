"""What both Trainers begin with."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import tensorflow_transform as tft
import tf_keras as keras

from data.spec import Spec, parse_spec

if TYPE_CHECKING:
    from tfx.components.trainer.fn_args_utils import FnArgs


def begin(fn_args: FnArgs) -> tuple[Spec, tft.TFTransformOutput]:
    """Reads a Trainer's spec and Transform's output; sets Keras' seed and precision.

    With `model.mixed_precision` layers compute in bfloat16, which has float32's range and so
    needs no loss scaling; weights, routers, logits, losses and H stay float32.
    """
    spec = parse_spec(json.loads(fn_args.custom_config["spec"]))
    keras.utils.set_random_seed(spec.training.seed)
    # Set either way: one process runs all Trainers.
    policy = "mixed_bfloat16" if spec.model.mixed_precision else "float32"
    keras.mixed_precision.set_global_policy(policy)
    return spec, tft.TFTransformOutput(fn_args.transform_output)
