"""The input alone against the fine-tuning step on batches in memory.

    python -m benchmarks.training.input --spec kuairand_pure \\
        --examples RUN/pipeline/Transform/transformed_examples/ID \\
        --graph RUN/pipeline/Transform/transform_graph/ID

Instances a second of writing the shards (once a run), of an epoch read from them, of localizing
the ids of every id table, and of `--steps` steps of the model. The last line says how many times
what the model consumes the input feeds; where others use the machine, trust the ratio of CPU time.
"""

from __future__ import annotations

import os
import pathlib
import tempfile
import time
from collections.abc import Iterable, Iterator

os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import tensorflow as tf  # noqa: E402
import tensorflow_transform as tft  # noqa: E402
from absl import app, flags, logging  # noqa: E402

from data.spec import load_spec  # noqa: E402
from modules.features import Batch  # noqa: E402
from modules.models.user_model import UserModel  # noqa: E402
from modules.objectives.multi_task import multi_task_loss  # noqa: E402
from modules.preprocessing import table_rows  # noqa: E402
from modules.training.input.batches import epoch_batches  # noqa: E402
from modules.training.input.localize import large_tables, localize  # noqa: E402
from modules.training.input.shards import load_shards, write_shards  # noqa: E402
from modules.training.placements.synchronous import Synchronous  # noqa: E402
from modules.training.step import Step  # noqa: E402

_SPEC = flags.DEFINE_string("spec", "kuairand_pure", "Spec file, or name of a bundled one.")
_EXAMPLES = flags.DEFINE_string("examples", None, "Folder with Split-*/*.gz.", required=True)
_GRAPH = flags.DEFINE_string("graph", None, "Transform's graph.", required=True)
_STEPS = flags.DEFINE_integer("steps", 60, "Steps of the model to time.", lower_bound=1)
_WARM_UP = 3


def instances_per_second(name: str, read: Iterable[int]) -> tuple[float, float]:
    """Runs through `read`, counts of instances; prints and returns rates of wall and CPU time."""
    wall, cpu = time.perf_counter(), time.process_time()
    instances = sum(read)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    print(f"{name:<24}{instances:>8} instances{instances / wall:>10.0f} /s", end="")
    print(f"{instances / cpu:>10.0f} /CPU-s", flush=True)
    return instances / wall, instances / cpu


def sizes(batches: Iterable[Batch]) -> Iterator[int]:
    return (int(batch["sequence_mask"].shape[0]) for batch in batches)


def main(_: list[str]) -> None:
    logging.set_verbosity(logging.WARNING)
    spec = load_spec(_SPEC.value)
    phase = spec.training.finetune
    transform_output = tft.TFTransformOutput(_GRAPH.value)
    files = [str(path) for path in pathlib.Path(_EXAMPLES.value).glob("Split-*/*")]
    rows = table_rows(spec, transform_output)
    with tempfile.TemporaryDirectory() as folder:

        def written() -> Iterator[int]:
            shards = write_shards(
                files,
                transform_output,
                spec,
                "train",
                folder,
                batch_size=phase.batch_size,
                seed=spec.training.seed,
            )
            yield shards.num_instances

        instances_per_second("write_shards", written())
        shards = load_shards(folder)

        def read(epoch: int | tf.Tensor, start: int | tf.Tensor, stop: int | tf.Tensor):
            return epoch_batches(shards, transform_output, spec, epoch, start, stop)

        num_steps = min(_STEPS.value, shards.num_batches - _WARM_UP)
        fed = instances_per_second("input alone", sizes(read(0, 0, shards.num_batches)))
        cached = read(1, 0, _WARM_UP + num_steps).cache()
        in_memory = list(cached)

    ids = {table: tuple(c.feature for c in spec.tables[table]) for table in rows}
    distinct = cached.map(lambda batch: localize(batch, ids))
    instances_per_second("localize alone", sizes(distinct))
    model = UserModel(spec, rows)
    model(in_memory[0])
    step = Step(model, lambda batch, _: multi_task_loss(model, batch), phase, num_steps)
    placement = Synchronous(tf.distribute.get_strategy(), large_tables(spec, rows), report_every=1)
    placement.start(step, phase, lambda _, start, stop: cached.skip(start).take(stop - start))

    def trained(start: int, stop: int) -> Iterator[int]:
        batches = sizes(in_memory[start:stop])
        for size, _ in zip(batches, placement.steps(1, start, stop, start, never), strict=True):
            yield size

    list(trained(0, _WARM_UP))
    consumed = instances_per_second("model alone", trained(_WARM_UP, _WARM_UP + num_steps))
    wall, cpu = (f / c for f, c in zip(fed, consumed, strict=True))
    print(f"input / model: {wall:.1f} by wall time, {cpu:.1f} by CPU time")


def never() -> bool:
    return False


if __name__ == "__main__":
    app.run(main)
