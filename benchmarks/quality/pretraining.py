"""AUC with and without pre-training, at the same fine-tuning budget.

    python -m benchmarks.quality.pretraining --run=runs/simulator --seeds=0,1,2 --epochs=2

Reads what Transform wrote in a finished run, and calls the Trainers' own entry points.
AUC is the training curves': of the first 64 evaluation batches (on the simulator, all).
"""

from __future__ import annotations

from tfx_pipeline import environment

environment.prepare()  # Before TensorFlow is imported.

import json  # noqa: E402
import pathlib  # noqa: E402
import statistics  # noqa: E402
import tempfile  # noqa: E402
from typing import Any  # noqa: E402

import tensorflow as tf  # noqa: E402
from absl import app, flags, logging  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402
from tfx.components.trainer.fn_args_utils import FnArgs  # noqa: E402

from data.spec import Spec, parse_spec  # noqa: E402
from modules.training import finetune, pretrain  # noqa: E402
from tfx_pipeline.layout import Layout  # noqa: E402

_RUN = flags.DEFINE_string("run", "runs/simulator", "Output folder of a finished run.")
_EPOCHS = flags.DEFINE_integer("epochs", None, "Fine-tuning epochs (default: the spec's).", 1)
_SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "Seeds of initialisation and order.")


def train(
    run: pathlib.Path, spec: Spec, folder: pathlib.Path, cluster: dict[str, Any] | None = None
) -> dict[str, float]:
    """Both phases (or fine-tuning only, at 0 pre-training epochs) -> final AUC of every task.

    Args:
      cluster: where (`modules/training/cluster/config.py`); None: in this process.
    """
    config = {"spec": spec.model_dump_json(), "cluster": cluster or {}}
    base_model = None
    if spec.training.pretrain.epochs:
        pretrain.run_fn(_fn_args(run, config, folder / "pretrain"))
        base_model = str(folder / "pretrain")
    finetune.run_fn(_fn_args(run, config, folder / "finetune", base_model))
    last = (folder / "finetune" / "history.jsonl").read_text().splitlines()[-1]
    return {k: v for k, v in json.loads(last).items() if k.startswith("val/")}


def _fn_args(
    run: pathlib.Path, config: dict[str, Any], folder: pathlib.Path, base_model: str | None = None
) -> FnArgs:
    examples = _newest(run, "Transform/transformed_examples")
    return FnArgs(
        train_files=[str(examples / "Split-train/*")],
        eval_files=[str(examples / "Split-eval/*")],
        transform_output=str(_newest(run, "Transform/transform_graph")),
        serving_model_dir=str(folder),
        model_run_dir=str(folder),
        base_model=base_model,
        custom_config=config,
    )


def _newest(run: pathlib.Path, artifact: str) -> pathlib.Path:
    found = sorted((Layout(run).artifacts / artifact).glob("*"), key=lambda path: int(path.name))
    if not found:
        raise FileNotFoundError(f"{run}: no {artifact}; run the pipeline there first")
    return found[-1]


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
    run = pathlib.Path(_RUN.value)
    spec = parse_spec(json.loads(Layout(run).spec.read_text()))
    results: dict[bool, list[dict[str, float]]] = {True: [], False: []}
    for seed in map(int, _SEEDS.value):
        for pretrained in (True, False):
            with tempfile.TemporaryDirectory() as folder:
                one = train(run, _seeded(spec, seed, pretrained), pathlib.Path(folder))
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
