"""Every model with every seed, each trained, asked and kept once, in a folder of its own."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import tensorflow as tf

from data.spec import Spec
from tfx_pipeline import fingerprint
from tfx_pipeline.comparison import cost, predictions, training
from tfx_pipeline.comparison.finished_run import FinishedRun
from tfx_pipeline.comparison.provenance import provenance
from tfx_pipeline.comparison.variants import Variant, seeded

_CODE = (
    *fingerprint.SPEC,
    "data/schema.py",
    "modules",
    "tfx_pipeline/comparison/training.py",
    "tfx_pipeline/comparison/predictions.py",
    "tfx_pipeline/evaluation.py",
)
_PRETRAINING = "_pretraining"  # no model is called so
_OUTCOME, _PREDICTIONS, _CPU = "outcome.json", "predictions.parquet", "cpu.json"


@dataclasses.dataclass(frozen=True)
class Trial:
    """One training: a model from one seed. Its folders' names change with spec, data and code.

    Attributes:
      pretraining: where its pre-training is, shared by all trials that differ in fine-tuning only;
        None if it has none.
    """

    model: str
    seed: int
    spec: Spec
    folder: pathlib.Path
    pretraining: pathlib.Path | None

    @property
    def finished(self) -> bool:
        return (self.folder / _OUTCOME).exists()

    @property
    def pretrained(self) -> bool:
        """Whether nobody has to pre-train for it (any more)."""
        return self.pretraining is None or training.is_pretrained(self.pretraining)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a trial came to.

    Attributes:
      steps: of each phase.
      cpu_seconds: of this process while it trained, evaluations for its curves included; a shared
        pre-training counts for each trial.
      seconds_a_step: of fine-tuning, wall time.
      total, active, tuned: parameters (`cost.Size`).
      threads: that computed an operation; 0: as many as there are cores.
      commit, machine, date: of `provenance`.
    """

    steps: dict[str, int]
    cpu_seconds: float
    seconds_a_step: float
    total: int
    active: int
    tuned: int
    threads: int
    commit: str
    machine: str
    date: str


def plan(
    variants: Sequence[Variant], seeds: Sequence[int], run: FinishedRun, folder: pathlib.Path
) -> list[Trial]:
    """All trials, seed by seed, so that what is finished early compares already."""
    about = [fingerprint.of_code(*_CODE), str(run.instances), str(run.transform_graph)]
    found = []
    for seed in seeds:
        for variant in variants:
            spec = seeded(variant, seed)
            place = folder / variant.name / f"seed-{seed}-{_key(spec.fingerprint(), *about)}"
            pretraining = None
            if spec.training.pretrain.epochs:
                key = _key(_read_by_pretraining(spec), *about)
                pretraining = folder / _PRETRAINING / f"seed-{seed}-{key}"
            found.append(Trial(variant.name, seed, spec, place, pretraining))
    return found


def _read_by_pretraining(spec: Spec) -> dict[str, Any]:
    """Trials that agree in this have one pre-training."""
    only_fine_tuning_reads: Any = {
        "tasks": True,
        "evaluation": True,
        "knowledge": True,
        "domain": True,
        # `context` by what it makes of the encoder's channels, below.
        "model": {
            "context",
            "heads",
            "tower_dims",
            "added_tasks",
            "cross_lasso",
            "reversal_weight",
        },
        "training": {"finetune"},
    }
    raw = spec.model_dump(mode="json", exclude=only_fine_tuning_reads)
    # Tasks say which channels the encoder mustn't see.
    return raw | {"encoder_context": [channel.name for channel in spec.encoder_context]}


def _key(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]


def carry_out(trial: Trial, run: FinishedRun) -> None:
    """Trains, predicts and keeps; where an earlier call was killed, it goes on."""
    size = cost.size_of(trial.spec, run.transform_graph)  # first: it builds the model, in seconds
    trial.folder.mkdir(parents=True, exist_ok=True)
    pretrained_model = _pretrained(trial, run) if trial.pretraining else None
    with cost.Meter(trial.folder / _CPU) as meter:
        training.fine_tuned(run, trial.spec, trial.folder, pretrained_model)
    cpu_seconds = meter.cpu_seconds
    if trial.pretraining:
        cpu_seconds += cost.cpu_seconds(trial.pretraining / _CPU)
    found = predictions.predict(training.model_of(trial.folder), run.instances, trial.spec)
    predictions.write(found, trial.folder / _PREDICTIONS)
    outcome: dict[str, Any] = {
        "steps": cost.steps_of([f for f in (trial.pretraining, trial.folder) if f]),
        "cpu_seconds": cpu_seconds,
        "seconds_a_step": cost.seconds_a_step(trial.folder),
        **dataclasses.asdict(size),
        "threads": tf.config.threading.get_intra_op_parallelism_threads(),
        **provenance(),
    }
    partial = trial.folder / f"{_OUTCOME}.new"
    partial.write_text(json.dumps(outcome, indent=1))
    partial.replace(trial.folder / _OUTCOME)  # only now it is finished


def _pretrained(trial: Trial, run: FinishedRun) -> pathlib.Path:
    """The folder of its model, made if it isn't there."""
    assert trial.pretraining is not None
    if trial.pretrained:  # others that share it may be reading what it took just now
        return training.pretrained(run, trial.spec, trial.pretraining)
    trial.pretraining.mkdir(parents=True, exist_ok=True)
    with cost.Meter(trial.pretraining / _CPU):
        return training.pretrained(run, trial.spec, trial.pretraining)


def outcome_of(trial: Trial) -> Outcome:
    return Outcome(**json.loads((trial.folder / _OUTCOME).read_text()))


def predictions_of(trial: Trial) -> pa.Table:
    return predictions.read(trial.folder / _PREDICTIONS)
