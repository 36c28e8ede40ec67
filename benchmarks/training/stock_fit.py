"""What a user of tf_keras would write: `model.fit` under ParameterServerStrategy with Adagrad.

The same SuperMoE and loss; its tables are ordinary weights that the stock partitioner cuts, read by
`tf.nn.embedding_lookup` for every id of the batch.
"""

from __future__ import annotations

import os
import sys
from unittest import mock

os.environ["TF_USE_LEGACY_KERAS"] = "1"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import tensorflow as tf  # noqa: E402
import tf_keras as keras  # noqa: E402

from benchmarks.training.commands import Commands, parser, place  # noqa: E402
from benchmarks.training.problem import Problem  # noqa: E402
from modules.features import Batch  # noqa: E402
from modules.models import tables as model_tables  # noqa: E402
from modules.models import user_model  # noqa: E402
from modules.objectives.multi_task import multi_task_loss  # noqa: E402
from modules.training.cluster.config import Cluster, ClusterTask  # noqa: E402


class StockTable(keras.layers.Layer):
    """In place of `EmbeddingTable`; row 0 reads as zeros."""

    def __init__(self, num_rows: int, dim: int, name: str):
        super().__init__(name=name)
        self.num_rows, self.dim, self.large = num_rows, dim, False
        self.rows = self.add_weight(
            name="rows", shape=(num_rows, dim), initializer=keras.initializers.RandomUniform()
        )

    def call(self, ids: tf.Tensor, rows: None = None) -> tf.Tensor:
        found = tf.nn.embedding_lookup(self.rows, ids)
        return found * tf.cast(ids != 0, found.dtype)[..., tf.newaxis]


class Stock(keras.Model):
    """SuperMoE with its own training step, as Keras asks for it."""

    def __init__(self, problem: Problem):
        super().__init__()
        rows = problem.table_rows
        tables = {
            name: StockTable(rows[name], model_tables.table_dim(problem.spec, name), name)
            for name in rows
        }
        with mock.patch.object(user_model, "embedding_tables", lambda *_: tables):
            self.inner = user_model.UserModel(problem.spec, rows)

    def call(self, batch: Batch) -> None:
        self.inner(batch)

    def train_step(self, batch: Batch) -> dict[str, tf.Tensor]:
        with tf.GradientTape() as tape:
            loss, _ = multi_task_loss(self.inner, batch)
        self.optimizer.minimize(loss, self.trainable_variables, tape=tape)
        return {"loss": loss}


class Obeying(keras.callbacks.Callback):
    """Every epoch is what was asked for; the first is the warm-up."""

    def __init__(self, commands: Commands, steps: int):
        super().__init__()
        self._commands, self._asked, self._steps = commands, iter(commands), steps

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        if epoch == 0:
            return
        asked = next(self._asked, None)
        if asked is None:
            os._exit(0)  # nobody asks any more
        if asked != self._steps:
            raise ValueError(f"asked for {asked} steps, but an epoch of fit has {self._steps}")

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        self._commands.answer(losses=[float((logs or {})["loss"])])


def main(arguments: list[str]) -> None:
    flags = parser(__doc__)
    flags.add_argument("--steps", type=int, required=True, help="of an epoch")
    given = flags.parse_args(arguments)
    problem = Problem(**given.problem)
    strategy = _strategy(*place(given.cluster))
    keras.utils.set_random_seed(0)
    with strategy.scope():
        model = Stock(problem)
        model(next(iter(problem.batches(0, 0, 1).map(_first_two))))
        model.compile(keras.optimizers.Adagrad(problem.spec.training.finetune.table_learning_rate))

    def dataset(context: tf.distribute.InputContext) -> tf.data.Dataset:
        return problem.batches(context.input_pipeline_id, 0, 1 << 40).prefetch(2)

    model.fit(
        keras.utils.experimental.DatasetCreator(dataset),
        epochs=1 << 30,
        steps_per_epoch=given.steps,
        verbose=0,
        callbacks=[Obeying(Commands(given.socket), given.steps)],
    )


def _first_two(batch: Batch) -> Batch:
    return {name: value[:2] for name, value in batch.items()}


def _strategy(cluster: Cluster, task: ClusterTask | None) -> tf.distribute.ParameterServerStrategy:
    assert task is not None
    addresses = {role: list(known) for role, known in task.addresses.model_dump().items()}
    resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
        tf.train.ClusterSpec(addresses), task_type="chief", task_id=0, rpc_layer="grpc"
    )
    partitioner = tf.distribute.experimental.partitioners.MinSizePartitioner(
        cluster.min_shard_bytes, max_shards=cluster.count("ps")
    )
    return tf.distribute.ParameterServerStrategy(resolver, variable_partitioner=partitioner)


if __name__ == "__main__":
    main(sys.argv[1:])
