"""AUC with and without pre-training, at the same fine-tuning budget.

    python -m benchmarks.quality.pretraining --run=runs/simulator --seeds=0,1,2 --epochs=2

Reads what Transform wrote in a finished run, and calls the Trainers' own entry points.
AUC is the training curves': of the first 64 evaluation batches (on the simulator, all).
"""

from __future__ import annotations

from tfx_pipeline import environment

environment.prepare()  # Before TensorFlow is imported.

import pathlib  # noqa: E402
import statistics  # noqa: E402
import tempfile  # noqa: E402

import tensorflow as tf  # noqa: E402
from absl import app, flags, logging  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

from data.spec import Spec, parse_spec  # noqa: E402
from tfx_pipeline.comparison.finished_run import finished_run  # noqa: E402
from tfx_pipeline.comparison.training import train  # noqa: E402
from tfx_pipeline.layout import output_of  # noqa: E402

_RUN = flags.DEFINE_string("run", "runs/simulator", "Output folder of a finished run.")
_EPOCHS = flags.DEFINE_integer("epochs", None, "Fine-tuning epochs (default: the spec's).", 1)
_SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "Seeds of initialisation and order.")


def _seeded(spec: Spec, seed: int, pretrained: bool) -> Spec:
    raw = spec.model_dump(mode="json")
    raw["training"]["seed"] = seed
    if _EPOCHS.value:
        raw["training"]["finetune"]["epochs"] = _EPOCHS.value
    if not pretrained:
        raw["training"]["pretrain"]["epochs"] = 0
    return parse_spec(raw)


def main(argv: list[str]) -> None:
    del argv
    logging.set_verbosity(logging.WARNING)
    tf.get_logger().setLevel("WARNING")
    run = finished_run(output_of(_RUN.value))
    results: dict[bool, list[dict[str, float]]] = {True: [], False: []}
    for seed in map(int, _SEEDS.value):
        for pretrained in (True, False):
            with tempfile.TemporaryDirectory() as folder:
                one = train(run, _seeded(run.spec, seed, pretrained), pathlib.Path(folder))
            results[pretrained].append(one)
            print(f"seed {seed}, pre-trained {pretrained}: {one}", flush=True)
    table = Table("AUC", "with", "without", "gain", "seeds won", box=None)
    for name in results[True][0]:
        pairs = [(a[name], b[name]) for a, b in zip(results[True], results[False], strict=True)]
        with_, without = (statistics.mean(side) for side in zip(*pairs, strict=True))
        won = sum(a > b for a, b in pairs)
        cells = (f"{with_:.4f}", f"{without:.4f}", f"{with_ - without:+.4f}")
        table.add_row(name, *cells, f"{won}/{len(pairs)}")
    Console().print(table)


if __name__ == "__main__":
    app.run(main)
