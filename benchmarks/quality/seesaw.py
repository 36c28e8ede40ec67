"""The seesaw: each task's AUC under joint training minus that of its own single-task model.

    python -m benchmarks.quality.seesaw --run=runs/simulator --seeds=0,1,2 --epochs=2 \
        --weightings=static,uncertainty,gradnorm,pcgrad,bilevel

Every model is fine-tuned from scratch with the same steps (`--model=` changes keys of the spec's
`model`, such as `{"heads": "ple"}`). Reads what Transform wrote in a finished run. AUC is the
training curves': of the first 64 evaluation batches (on the simulator, all).
"""

from __future__ import annotations

from tfx_pipeline import environment

environment.prepare()  # Before TensorFlow is imported.

import json  # noqa: E402
import pathlib  # noqa: E402
import statistics  # noqa: E402
import tempfile  # noqa: E402

import tensorflow as tf  # noqa: E402
from absl import app, flags, logging  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

from data.spec import Spec, parse_spec  # noqa: E402
from modules.objectives.weighting.methods import WEIGHTINGS  # noqa: E402
from tfx_pipeline.comparison.finished_run import FinishedRun, finished_run  # noqa: E402
from tfx_pipeline.comparison.training import train  # noqa: E402
from tfx_pipeline.layout import output_of  # noqa: E402

_SINGLE = "single task"
_RUN = flags.DEFINE_string("run", "runs/simulator", "Output folder of a finished run.")
_EPOCHS = flags.DEFINE_integer("epochs", None, "Fine-tuning epochs (default: the spec's).", 1)
_SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "Seeds of initialisation and order.")
_WEIGHTINGS = flags.DEFINE_list("weightings", list(WEIGHTINGS), "What is compared.")
_MODEL = flags.DEFINE_string("model", "{}", "JSON of keys to change in the spec's `model`.")


def of_seed(spec: Spec, seed: int, weighting: str) -> Spec:
    """Fine-tuning alone, from this seed, under a weighting of the tasks' losses."""
    raw = spec.model_dump(mode="json")
    raw["training"] |= {"seed": seed}
    raw["training"]["pretrain"]["epochs"] = 0
    raw["training"]["finetune"]["weighting"] = weighting
    if _EPOCHS.value:
        raw["training"]["finetune"]["epochs"] = _EPOCHS.value
    raw["model"] |= json.loads(_MODEL.value)
    return parse_spec(raw)


def _auc(run: FinishedRun, spec: Spec) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        curves = train(run, spec, pathlib.Path(folder))
    return {name.split("/")[1]: value for name, value in curves.items()}


def _trained(run: FinishedRun, seed: int) -> dict[str, dict[str, float]]:
    """Every task's AUC by what was trained, of one seed."""
    one = of_seed(run.spec, seed, "static")
    alone: dict[str, float] = {}
    for task in one.tasks:
        if task.type == "binary":
            alone |= _auc(run, one.with_tasks(task.name))
            print(f"seed {seed}, {task.name} alone: {alone[task.name]:.4f}", flush=True)
    trained = {_SINGLE: alone}
    for weighting in _WEIGHTINGS.value:
        trained[weighting] = _auc(run, of_seed(run.spec, seed, weighting))
        print(f"seed {seed}, {weighting}: {json.dumps(trained[weighting])}", flush=True)
    return trained


def _table(by_seed: list[dict[str, dict[str, float]]]) -> Table:
    tasks = list(by_seed[0][_SINGLE])
    table = Table("", *tasks, "mean", "worst", box=None)
    alone = [statistics.mean(seed[_SINGLE][task] for seed in by_seed) for task in tasks]
    table.add_row("AUC alone", *(f"{value:.4f}" for value in (*alone, statistics.mean(alone))), "")
    for weighting in by_seed[0]:
        if weighting == _SINGLE:
            continue
        gains = [
            [seed[weighting][task] - seed[_SINGLE][task] for seed in by_seed] for task in tasks
        ]
        means = [statistics.mean(of_task) for of_task in gains]
        cells = [
            f"{mean:+.4f} ± {statistics.stdev(of_task) if len(of_task) > 1 else 0.0:.4f}"
            for mean, of_task in zip(means, gains, strict=True)
        ]
        table.add_row(weighting, *cells, f"{statistics.mean(means):+.4f}", f"{min(means):+.4f}")
    return table


def main(argv: list[str]) -> None:
    del argv
    logging.set_verbosity(logging.WARNING)
    tf.get_logger().setLevel("WARNING")
    run = finished_run(output_of(_RUN.value))
    by_seed = [_trained(run, int(seed)) for seed in _SEEDS.value]
    Console(width=160).print(_table(by_seed))


if __name__ == "__main__":
    app.run(main)
