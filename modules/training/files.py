"""Which files of a TFX Trainer's examples hold a split's targets (docs/contracts.md)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import tensorflow as tf

from data.spec import Spec

if TYPE_CHECKING:
    from tfx.components.trainer.fn_args_utils import FnArgs


def of_split(fn_args: FnArgs, spec: Spec, split: str) -> list[str]:
    """Files to read for the targets of `split`, 'train' or 'eval'.

    Under a time split a user's train and eval targets share one instance, which stands in the
    eval files; training reads those too and `select_split` cuts the eval part away.

    Raises:
      FileNotFoundError: there are none.
    """
    patterns = list(fn_args.eval_files)
    if split == "train":
        patterns = list(fn_args.train_files)
        if spec.split.by == "time":
            patterns += list(fn_args.eval_files)
    paths = [path for pattern in patterns for path in tf.io.gfile.glob(pattern)]
    if not paths:
        raise FileNotFoundError(f"no transformed {split} examples match {patterns}")
    return paths
