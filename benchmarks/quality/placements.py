"""AUC of asynchronous placements beside one process, at the same budget and seeds.

    python -m benchmarks.quality.placements --run=runs/simulator --seeds=0,1,2 --epochs=3

Fine-tuning from scratch on what Transform wrote in a finished run, in real local clusters. Tables
of more than 256 rows are large here, so that the simulator has some.
AUC is the training curves': of the first 64 evaluation batches (on the simulator, all).
"""

from __future__ import annotations

from tfx_pipeline import environment

environment.prepare()  # Before TensorFlow is imported.

import json  # noqa: E402
import pathlib  # noqa: E402
import statistics  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402

import tensorflow as tf  # noqa: E402
from absl import app, flags, logging  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

import benchmarks.quality.pretraining  # noqa: E402,F401  --run, --seeds, --epochs
from data.spec import Spec, parse_spec  # noqa: E402
from tfx_pipeline.comparison.finished_run import finished_run  # noqa: E402
from tfx_pipeline.comparison.training import train  # noqa: E402
from tfx_pipeline.layout import output_of  # noqa: E402

_LARGE_FROM = 256
_CLUSTERS = {
    "single": {},
    "parameter_server": {
        "placement": "parameter_server",
        "processes": {"worker": 2, "ps": 2},
    },
    "hybrid": {"placement": "hybrid", "processes": {"ps": 2}},
}
flags.DEFINE_list("placements", list(_CLUSTERS), "Which to train in; single is the reference.")


def main(argv: list[str]) -> None:
    del argv
    logging.set_verbosity(logging.WARNING)
    tf.get_logger().setLevel("WARNING")
    run = finished_run(output_of(flags.FLAGS.run))
    results: dict[str, list[dict[str, float]]] = {name: [] for name in flags.FLAGS.placements}
    for seed in map(int, flags.FLAGS.seeds):
        for name in results:
            started = time.monotonic()
            with tempfile.TemporaryDirectory() as folder:
                one = train(run, of_seed(run.spec, seed), pathlib.Path(folder), _CLUSTERS[name])
            results[name].append(one)
            seconds = time.monotonic() - started
            print(f"seed {seed}, {name}, {seconds:.0f} s: {json.dumps(one)}", flush=True)
    table = Table("mean AUC", *results, *(f"{n} - single" for n in results if n != "single"))
    for task in results["single"][0]:
        means = {n: statistics.mean(one[task] for one in of) for n, of in results.items()}
        others = [f"{means[n] - means['single']:+.4f}" for n in means if n != "single"]
        table.add_row(task, *(f"{mean:.4f}" for mean in means.values()), *others)
    Console().print(table)


def of_seed(spec: Spec, seed: int) -> Spec:
    """Fine-tuning alone, from this seed, with tables that count as large."""
    raw = spec.model_dump(mode="json")
    raw["training"] |= {"seed": seed}
    raw["training"]["pretrain"]["epochs"] = 0
    if flags.FLAGS.epochs:
        raw["training"]["finetune"]["epochs"] = flags.FLAGS.epochs
    raw["model"]["full_softmax_rows"] = _LARGE_FROM
    return parse_spec(raw)


if __name__ == "__main__":
    app.run(main)
