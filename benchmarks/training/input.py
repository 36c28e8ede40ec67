"""The input graph alone against the fine-tuning step on batches in memory.

    python -m benchmarks.training.input --spec kuairand_pure \\
        --examples RUN/pipeline/Transform/transformed_examples/ID \\
        --graph RUN/pipeline/Transform/transform_graph/ID

Instances a second over an epoch of the reader, then over `--steps` steps of the model on batches
of such an epoch. The last line says how many times what the model consumes the reader feeds;
where others use the machine, trust the ratio of CPU time.
"""

from __future__ import annotations

import os
import pathlib
import time
from collections.abc import Iterable, Iterator

os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import tensorflow as tf  # noqa: E402
import tensorflow_transform as tft  # noqa: E402
from absl import app, flags, logging  # noqa: E402

from data.spec import load_spec  # noqa: E402
from modules.features import Batch  # noqa: E402
from modules.models.supermoe import SuperMoE  # noqa: E402
from modules.objectives.multi_task import multi_task_loss  # noqa: E402
from modules.preprocessing import table_rows  # noqa: E402
from modules.training.loop import make_train_step  # noqa: E402
from modules.training.reader import batches  # noqa: E402

_SPEC = flags.DEFINE_string("spec", "kuairand_pure", "Spec file, or name of a bundled one.")
_EXAMPLES = flags.DEFINE_string("examples", None, "Folder with Split-*/*.gz.", required=True)
_GRAPH = flags.DEFINE_string("graph", None, "Transform's graph.", required=True)
_STEPS = flags.DEFINE_integer("steps", 60, "Steps of the model to time.", lower_bound=1)
_WARM_UP = 3


def instances_per_second(name: str, read: Iterable[Batch]) -> tuple[float, float]:
    """Runs through `read`; prints and returns the rates of wall and of CPU time."""
    wall, cpu = time.perf_counter(), time.process_time()
    instances = sum(int(batch["sequence_mask"].shape[0]) for batch in read)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    print(f"{name:<24}{instances:>8} instances{instances / wall:>10.0f} /s", end="")
    print(f"{instances / cpu:>10.0f} /CPU-s", flush=True)
    return instances / wall, instances / cpu


def main(_: list[str]) -> None:
    logging.set_verbosity(logging.WARNING)
    spec = load_spec(_SPEC.value)
    phase = spec.training.finetune
    transform_output = tft.TFTransformOutput(_GRAPH.value)
    files = [str(path) for path in pathlib.Path(_EXAMPLES.value).glob("Split-*/*")]
    dataset = batches(files, transform_output, spec, "train", phase.batch_size, seed=0)
    in_memory = list(dataset.take(_WARM_UP + _STEPS.value))  # Also warms the reader up.
    model = SuperMoE(spec, table_rows(spec, transform_output))
    model(in_memory[0])
    step = make_train_step(
        model,
        lambda batch, _: multi_task_loss(model, batch),
        dataset.element_spec,
        phase,
        len(in_memory),
    )

    def trained(chosen: list[Batch]) -> Iterator[Batch]:
        for number, batch in enumerate(chosen):
            step(batch, tf.constant(number, tf.int64))["loss"].numpy()
            yield batch

    for _ in trained(in_memory[:_WARM_UP]):
        pass
    fed = instances_per_second("input graph alone", dataset)
    consumed = instances_per_second("model alone", trained(in_memory[_WARM_UP:]))
    wall, cpu = (f / c for f, c in zip(fed, consumed, strict=True))
    print(f"input / model: {wall:.1f} by wall time, {cpu:.1f} by CPU time")


if __name__ == "__main__":
    app.run(main)
