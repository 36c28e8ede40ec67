"""One model's training on what a finished run's Transform wrote: both phases, as a run's."""

from __future__ import annotations

import json
import pathlib
import types
from typing import Any

from tfx.components.trainer.fn_args_utils import FnArgs

from data.spec import Spec
from modules.training import finetune, pretrain
from tfx_pipeline.comparison.finished_run import FinishedRun

_DONE = "done"


def train(
    run: FinishedRun, spec: Spec, folder: pathlib.Path, cluster: dict[str, Any] | None = None
) -> dict[str, float]:
    """Both phases (or fine-tuning only, at 0 pre-training epochs), each at most once.

    Called again with the same folder it goes on: from the next phase, or within one from its newest
    checkpoint.

    Args:
      folder: gets `pretrain` and `finetune`, model artifacts each.
      cluster: where (`modules/training/cluster/config.py`); None: in this process.

    Returns:
      `val/<task>/auc`, as the training curves end: of the first 64 evaluation batches.
    """
    pretrained_model = None
    if spec.training.pretrain.epochs:
        pretrained_model = pretrained(run, spec, folder, cluster)
    fine_tuned(run, spec, folder, pretrained_model, cluster)
    last = (folder / finetune.NAME / "history.jsonl").read_text().splitlines()[-1]
    return {k: v for k, v in json.loads(last).items() if k.startswith("val/")}


def pretrained(
    run: FinishedRun, spec: Spec, folder: pathlib.Path, cluster: dict[str, Any] | None = None
) -> pathlib.Path:
    """`train`'s first phase: the folder of its model."""
    return _run(pretrain, run, spec, folder, None, cluster)


def is_pretrained(folder: pathlib.Path) -> bool:
    """Whether `pretrained` came to its end here."""
    return (folder / pretrain.NAME / _DONE).exists()


def fine_tuned(
    run: FinishedRun,
    spec: Spec,
    folder: pathlib.Path,
    pretrained_model: pathlib.Path | None,
    cluster: dict[str, Any] | None = None,
) -> pathlib.Path:
    """`train`'s second phase: the folder of its SavedModel."""
    return _run(finetune, run, spec, folder, pretrained_model, cluster)


def model_of(folder: pathlib.Path) -> pathlib.Path:
    """The SavedModel that `train` left in a folder."""
    return folder / finetune.NAME


def phases(folder: pathlib.Path) -> list[pathlib.Path]:
    """Folders of the phases that `train` ran, in their order."""
    every = (folder / phase.NAME for phase in (pretrain, finetune))
    return [path for path in every if path.exists()]


def _run(
    phase: types.ModuleType,
    run: FinishedRun,
    spec: Spec,
    folder: pathlib.Path,
    base_model: pathlib.Path | None,
    cluster: dict[str, Any] | None,
) -> pathlib.Path:
    """Returns the model artifact's folder."""
    target = folder / phase.NAME
    if not (target / _DONE).exists():
        phase.run_fn(
            FnArgs(
                train_files=[str(run.transformed / "Split-train/*")],
                eval_files=[str(run.transformed / "Split-eval/*")],
                transform_output=str(run.transform_graph),
                serving_model_dir=str(target),
                model_run_dir=str(target),
                base_model=str(base_model) if base_model else None,
                custom_config={"spec": spec.model_dump_json(), "cluster": cluster or {}},
            )
        )
        (target / _DONE).touch()
    return target
