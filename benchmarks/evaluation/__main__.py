"""Times the evaluation of KuaiRand-Pure's test split, and AUC as TFMA has it.

    python -m benchmarks.evaluation --data ../shared/data/kuairand-pure

Prints seconds (wall and CPU) of the whole evaluation of two models in five slices, of AUC alone,
exact and by histogram, and of TFMA's own AUC of `--rows` targets.
"""

from __future__ import annotations

import contextlib
import pathlib
import tempfile
import time
from collections.abc import Iterator

import pandas as pd
import tensorflow_model_analysis as tfma
from absl import app, flags, logging

from benchmarks.evaluation import kuairand
from data.spec import load_spec
from modules.metrics.auc import auc
from modules.metrics.results import load_metrics
from modules.metrics.score_histogram import count_scores, histogram_auc

_DATA = flags.DEFINE_string("data", "../shared/data/kuairand-pure", "The data set's folder.")
_ROWS = flags.DEFINE_integer("rows", 100_000, "Targets for TFMA's AUC; 0 leaves it out.")


@contextlib.contextmanager
def timed(name: str) -> Iterator[None]:
    wall, cpu = time.perf_counter(), time.process_time()
    yield
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    print(f"{name:<58}{wall:8.2f} s wall{cpu:8.2f} s CPU", flush=True)


def main(_: list[str]) -> None:
    logging.set_verbosity(logging.WARNING)
    spec = load_spec("kuairand_pure")
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        targets = kuairand.test_targets(pathlib.Path(_DATA.value))
        kuairand.write_instances(targets, root / "eval.gz")
        for model in kuairand.MODELS:
            kuairand.write_model(model, root / model)
        models = [str(root / model) for model in kuairand.MODELS]
        output = str(root / "evaluation")
        with timed(f"evaluation: {len(targets)} targets, 5 tasks, 2 models, 5 slices"):
            kuairand.evaluate(spec, str(root / "eval.gz"), models, output)
        found = load_metrics(output)
    labelled = targets[targets.label_click.notna()]
    label, score = labelled.label_click.to_numpy(), labelled.score_popularity_click.to_numpy()
    with timed(f"exact AUC of {len(label)} targets, NumPy"):
        exact = auc(label, score)
    with timed(f"histogram AUC of {len(label)} targets, NumPy"):
        histogram_auc(count_scores(label, score))
    print(f"click AUC: {exact:.6f} exact, {found.value('click', 'auc'):.6f} in the evaluation")
    if _ROWS.value:
        _time_tfma_auc(labelled.head(_ROWS.value))


def _time_tfma_auc(targets: pd.DataFrame) -> None:
    frame = pd.DataFrame(
        {"label": targets.label_click, "prediction": targets.score_popularity_click}
    )
    config = tfma.EvalConfig(
        model_specs=[tfma.ModelSpec(label_key="label", prediction_key="prediction")],
        slicing_specs=[tfma.SlicingSpec()],
        metrics_specs=[tfma.MetricsSpec(metrics=[tfma.MetricConfig(class_name="AUC")])],
    )
    with timed(f"TFMA's own AUC of {len(frame)} targets, 1 task, 1 model, 1 slice"):
        result = tfma.analyze_raw_data(frame, config)
    [(_, outputs)] = result.slicing_metrics
    print(f"click AUC by TFMA: {outputs['']['']['auc']['doubleValue']:.6f}")


if __name__ == "__main__":
    app.run(main)
